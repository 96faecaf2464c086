"""V-trace and Retrace's traces: exact on an enumerated decision process, for any behaviour policy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.advantages import gae, turn_gae
from proxlm.rl.estimators import (
    AdvantageInputs,
    gae_advantages,
    retrace_advantages,
    vtrace_advantages,
)
from proxlm.rl.off_policy import vtrace
from proxlm.rl.ragged import offsets_of, row_of_element

pytestmark = pytest.mark.checklist(42)
INF = float("inf")


def ragged(seed, dtype=torch.float32):
    """Rewards, values, log-weights, mask, offsets and bootstrap of rows of 0 to 7 tokens, some not chosen."""
    generator = torch.Generator().manual_seed(seed)

    def normal(count):
        return torch.randn(count, generator=generator, dtype=dtype)

    offsets = offsets_of(torch.randint(0, 8, (5,), generator=generator))
    count = int(offsets[-1])
    mask = torch.rand(count, generator=generator) < 0.7
    return normal(count), normal(count), 0.7 * normal(count), mask, offsets, normal(5)


# ---- the formula


def test_two_steps_by_hand():
    """w = 2, 0.5; r = 1, 3; V = 0.5, 1; γ = 0.9, λ = 0.8; ρ̄ = 1.5, c̄ = 1."""
    f64 = torch.float64
    rewards, values = torch.tensor([1.0, 3.0], dtype=f64), torch.tensor([0.5, 1.0], dtype=f64)
    logs, mask = torch.tensor([2.0, 0.5], dtype=f64).log(), torch.tensor([True, True])
    found = vtrace(rewards, values, logs, mask, torch.tensor([0, 2]), 0.9, 0.8, None, 1.5, 1.0)
    delta = (1 + 0.9 * 1 - 0.5, 3 - 1)
    second = 0.5 * delta[1]
    first = 1.5 * delta[0] + 0.9 * 0.8 * 1.0 * second
    assert found[0].tolist() == pytest.approx([delta[0] + 0.72 * second, delta[1]])
    assert found[1].tolist() == pytest.approx([0.5 + first, 1 + second])


def by_sums(rewards, values, weights, bootstrap, gamma, lam, rho_bar, c_bar):
    """One row of chosen tokens, in plain Python: v_s = V_s + Σ_t (γλ)^{t−s} (Π c) ρ_t δ_t."""
    following = [*values, bootstrap][1:]
    delta = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    found = []
    for s in range(len(values)):
        total, trace = 0.0, 1.0
        for t in range(s, len(values)):
            total += trace * min(rho_bar, weights[t]) * delta[t]
            trace *= gamma * lam * min(c_bar, weights[t])
        found.append(total)
    after = [*found, 0.0][1:]
    advantages = [d + gamma * lam * a for d, a in zip(delta, after, strict=True)]
    return advantages, [v + d for v, d in zip(values, found, strict=True)]


@given(
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.floats(0, 1) | st.just("of each row"),
    st.sampled_from([0.3, 1.0, 2.0, INF]),
    st.sampled_from([0.3, 1.0, 2.0, INF]),
    st.booleans(),
)
def test_it_is_the_sum_of_the_paper_on_every_row(seed, gamma, lam, rho_bar, c_bar, bootstrapped):
    rewards, values, logs, mask, offsets, ends = ragged(seed, torch.float64)
    of_row = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    by = of_row if lam == "of each row" else lam
    found = vtrace(
        rewards, values, logs, mask, offsets, gamma, by, ends if bootstrapped else None, rho_bar, c_bar
    )
    for b in range(5):
        at = slice(int(offsets[b]), int(offsets[b + 1]))
        chosen = mask[at].nonzero()[:, 0].tolist()
        owned = [range(i, j) for i, j in itertools.pairwise([*chosen, at.stop - at.start])]
        reward = [float(sum(rewards[at][k] for k in span)) for span in owned]
        wanted = by_sums(
            reward,
            values[at][chosen].tolist(),
            logs[at][chosen].exp().tolist(),
            float(ends[b]) if bootstrapped else 0.0,
            gamma,
            float(of_row[b]) if lam == "of each row" else lam,
            rho_bar,
            c_bar,
        )
        for numbers, by_hand in zip(found, wanted, strict=True):
            assert numbers[at][chosen].tolist() == pytest.approx(by_hand, abs=1e-9)
    assert (found[0][~mask] == 0).all()
    assert torch.equal(found[1][~mask], values[~mask])


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.95, 1.0]), st.booleans())
def test_on_policy_it_is_gae_bit_for_bit(seed, lam, per_row):
    """And with turns as steps turn GAE; whatever the bounds, if they are 1 or more."""
    rewards, values, _, mask, offsets, ends = ragged(seed)
    by = torch.rand(5, generator=torch.Generator().manual_seed(seed)) if per_row else lam
    nothing = torch.zeros_like(rewards)
    for turns, estimate in ((False, gae), (True, turn_gae)):
        wanted = estimate(rewards, values, mask, offsets, 0.99, by, ends)
        for bounds in ((1.0, 1.0), (INF, 1.0), (2.0, INF)):
            found = vtrace(rewards, values, nothing, mask, offsets, 0.99, by, ends, *bounds, turns)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@given(st.integers(0, 10**6))
def test_tokens_that_the_policy_did_not_choose_change_nothing(seed):
    """Not even their weights; and rows do not see one another."""
    rewards, values, logs, mask, offsets, ends = ragged(seed, torch.float64)
    row = row_of_element(offsets)
    first = torch.zeros_like(mask)  # what stands before a row's first step belongs to none
    for b in range(5):
        of_row = (row == b).nonzero()[:, 0]
        steps = of_row[mask[of_row]]
        first[of_row if not len(steps) else of_row[of_row < steps[0]]] = True
    rewards = torch.where(mask | first, rewards, 0.0)
    found = vtrace(rewards, values, logs, mask, offsets, 0.9, 0.8, ends, 1.1, 0.9)
    lengths = torch.bincount(row[mask], minlength=5)
    alone = vtrace(
        rewards[mask],
        values[mask],
        logs[mask],
        torch.ones(int(mask.sum()), dtype=torch.bool),
        offsets_of(lengths),
        0.9,
        0.8,
        ends,
        1.1,
        0.9,
    )
    assert torch.allclose(found[0][mask], alone[0], rtol=0, atol=1e-12)
    assert torch.allclose(found[1][mask], alone[1], rtol=0, atol=1e-12)


@given(st.integers(0, 10**6))
def test_a_turn_is_one_step_with_the_product_of_its_tokens_weights(seed):
    """Each turn as one token that has its sums: the same numbers, on every token of the turn."""
    rewards, values, logs, mask, offsets, ends = ragged(seed, torch.float64)
    found = vtrace(rewards, values, logs, mask, offsets, 0.9, 0.8, ends, 1.1, 0.9, turns=True)
    row = row_of_element(offsets).tolist()
    turns = []  # (row, tokens of the turn, tokens up to the next turn)
    for t in range(len(mask)):
        if mask[t] and not (t and mask[t - 1] and row[t - 1] == row[t]):
            turns.append((row[t], [t], [t]))
        elif turns and turns[-1][0] == row[t]:
            turns[-1][2].append(t)
            if mask[t]:
                turns[-1][1].append(t)
    if not turns:
        assert (found[0] == 0).all()
        return
    merged = vtrace(
        torch.stack([rewards[of].sum() for _, _, of in turns]),
        torch.stack([values[own[0]] for _, own, _ in turns]),
        torch.stack([logs[own].sum() for _, own, _ in turns]),
        torch.ones(len(turns), dtype=torch.bool),
        offsets_of(torch.bincount(torch.tensor([b for b, _, _ in turns]), minlength=5)),
        0.9,
        0.8,
        ends,
        1.1,
        0.9,
    )
    for k, (_, own, _) in enumerate(turns):
        for numbers, one in zip(found, merged, strict=True):
            assert numbers[own].tolist() == pytest.approx([float(one[k])] * len(own), abs=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    rewards, values, logs, mask, offsets, _ = ragged(3)
    with pytest.raises(ValueError, match="log-weights"):
        vtrace(rewards, values, logs[:-1], mask, offsets, 1.0, 0.9)
    with pytest.raises(ValueError, match="shapes do not fit: rewards"):
        vtrace(rewards[:-1], values, logs, mask, offsets, 1.0, 0.9)


# ---- an enumerated decision process: V = 3, T = 3, a reward after each token

V, T, GAMMA = 3, 3, 0.9
TRAJECTORIES = list(itertools.product(range(V), repeat=T))
PREFIXES = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
ROW = {prefix: i for i, prefix in enumerate(PREFIXES)}
STATES = torch.tensor([[ROW[y[:t]] for t in range(T)] for y in TRAJECTORIES])
ACTIONS = torch.tensor(TRAJECTORIES)
MASK = torch.ones(len(TRAJECTORIES) * T, dtype=torch.bool)
OFFSETS = torch.arange(len(TRAJECTORIES) + 1) * T


class Process:
    """Random rewards [prefix, action], target policy and behaviour policy, each a table of probabilities."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.rewards = self.normal(len(PREFIXES), V)
        self.target, self.behaviour = (self.normal(len(PREFIXES), V).softmax(-1) for _ in range(2))

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    @property
    def weights(self):
        return self.target / self.behaviour

    def action_values(self, values):
        """r + γ V of the state after it, [prefix, action]."""
        after = torch.zeros(len(PREFIXES), V, dtype=torch.float64)
        for prefix, i in ROW.items():
            if len(prefix) < T - 1:
                after[i] = torch.stack([values[ROW[(*prefix, a)]] for a in range(V)])
        return self.rewards + GAMMA * after

    def values(self, policy):
        """The value of each prefix under a policy, by backward induction."""
        values = torch.zeros(len(PREFIXES), dtype=torch.float64)
        for _ in range(T):
            values = (policy * self.action_values(values)).sum(-1)
        return values

    def clipped(self, rho_bar):
        """π_ρ̄ ∝ min(ρ̄ μ, π)."""
        shares = torch.minimum(rho_bar * self.behaviour, self.target)
        return shares / shares.sum(-1, keepdim=True)

    def estimates(self, values, lam, rho_bar, c_bar):
        """What `vtrace` gives on every trajectory, [27, 3] advantages and targets."""
        found = vtrace(
            self.rewards[STATES, ACTIONS].flatten(),
            values[STATES].flatten(),
            self.weights[STATES, ACTIONS].log().flatten(),
            MASK,
            OFFSETS,
            GAMMA,
            lam,
            None,
            rho_bar,
            c_bar,
        )
        return [x.view(-1, T) for x in found]

    def expected(self, numbers):
        """E_μ of numbers [27, 3] in each state, [prefix], and of each action in it, [prefix, action]."""
        steps = self.behaviour[STATES, ACTIONS]
        in_state, of_action = torch.zeros(len(PREFIXES)).double(), torch.zeros(len(PREFIXES), V).double()
        for t in range(T):
            later = steps[:, t + 1 :].prod(-1)
            in_state.index_add_(0, STATES[:, t], steps[:, t] * later * numbers[:, t])
            of_action.index_put_((STATES[:, t], ACTIONS[:, t]), later * numbers[:, t], accumulate=True)
        return in_state, of_action


BOUNDS = [(0.1, 1.0), (0.7, 0.3), (1.0, 1.0), (1.0, INF), (2.0, 1.0), (INF, 1.0), (INF, INF)]
SEEDS = range(2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rho_bar", "c_bar"), BOUNDS)
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_the_targets_fixed_point_is_the_value_of_the_clipped_policy(seed, lam, rho_bar, c_bar):
    """Theorem 1: of π_ρ̄, whatever c̄ and λ; and learning the targets again and again leads there from anywhere."""
    process = Process(seed)
    limit = process.target if rho_bar == INF else process.clipped(rho_bar)
    values = process.values(limit)
    found = process.expected(process.estimates(values, lam, rho_bar, c_bar)[1])[0]
    assert torch.allclose(found, values, rtol=0, atol=1e-12)
    learnt = process.normal(len(PREFIXES))
    for _ in range(400):
        target = process.expected(process.estimates(learnt, lam, rho_bar, c_bar)[1])[0]
        if float((target - learnt).abs().max()) < 1e-13:
            break
        learnt = target
    assert torch.allclose(learnt, values, rtol=0, atol=1e-9)
    if rho_bar <= 1.0:
        assert float((values - process.values(process.target)).abs().max()) > 1e-3  # the clip is a bias


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_bound_gives_the_target_policys_value_and_a_small_one_nearly_the_behaviours(seed):
    process = Process(seed)
    true, sampled = process.values(process.target), process.values(process.behaviour)
    assert torch.allclose(process.values(process.clipped(float(process.weights.max()))), true, atol=1e-12)
    assert torch.allclose(process.values(process.clipped(1e-9)), sampled, atol=1e-6)
    assert float((true - sampled).abs().max()) > 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_unclipped_and_with_lambda_1_any_critic_gives_the_true_values(seed):
    """E_μ[v] = V^π and E_μ[A | s, a] = Q^π − V of the critic, in one application."""
    process = Process(seed)
    critic = process.normal(len(PREFIXES))
    advantages, targets = process.estimates(critic, 1.0, INF, INF)
    true = process.values(process.target)
    assert torch.allclose(process.expected(targets)[0], true, rtol=0, atol=1e-12)
    wanted = process.action_values(true) - critic[:, None]
    assert torch.allclose(process.expected(advantages)[1], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_retraces_advantages_are_exact_at_the_true_values_for_any_behaviour(seed, lam):
    process = Process(seed)
    true = process.values(process.target)
    advantages, _ = process.estimates(true, lam, INF, 1.0)
    wanted = process.action_values(true) - true[:, None]
    assert torch.allclose(process.expected(advantages)[1], wanted, rtol=0, atol=1e-12)


# ---- the estimators


def inputs(seed, **more):
    rewards, values, logs, mask, offsets, ends = ragged(seed)
    groups = torch.zeros(5, dtype=torch.int64)
    return AdvantageInputs(rewards, values, mask, offsets, groups, ends, 0.9, 0.8, **more), logs


@pytest.mark.parametrize("more", [{}, {"critic_lam": 1.0}, {"turns": True, "critic_lam": 0.5}], ids=str)
def test_estimators_take_their_bounds_and_lambdas(more):
    given_inputs, logs = inputs(1, trace_rho=1.3, trace_c=0.9, **more)
    for estimate, rho_bar in ((vtrace_advantages, 1.3), (retrace_advantages, INF)):
        found = estimate(given_inputs._replace(log_weights=logs))
        x = given_inputs
        given_arguments = (x.rewards, x.values, logs, x.action_mask, x.offsets, 0.9)
        wanted = [
            vtrace(*given_arguments, lam, x.bootstrap, rho_bar, 0.9, x.turns)
            for lam in (0.8, more.get("critic_lam", 0.8))
        ]
        assert torch.equal(found.advantages, wanted[0][0])
        assert torch.equal(found.returns, wanted[1][1])
        alone, plain = estimate(given_inputs._replace(trace_c=1.0)), gae_advantages(given_inputs)
        assert all(torch.equal(a, b) for a, b in zip(alone, plain, strict=True))


def test_by_default_both_bounds_are_1():
    given_inputs, logs = inputs(2, log_weights=None)
    x = given_inputs._replace(log_weights=logs + math.log(3))
    wanted = vtrace(
        x.rewards, x.values, x.log_weights, x.action_mask, x.offsets, 0.9, 0.8, x.bootstrap, 1.0, 1.0
    )
    assert torch.equal(vtrace_advantages(x).returns, wanted[1])
    short = vtrace(x.rewards, x.values, x.log_weights, x.action_mask, x.offsets, 0.9, 0.8, x.bootstrap)
    assert torch.equal(short[1], wanted[1])
