"""Section 3, item 30: rewards of tokens and turns, potential-based shaping by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import strategies as st
from reward_cases import F64, given, normal, ragged, rows_of, seeds

from proxlm.rl.advantages import gae
from proxlm.rl.ragged import segment_sum
from proxlm.rl.shaping import potential_rewards, response_rewards, token_rewards


@pytest.mark.checklist(30)
def test_what_a_response_earned_in_all():
    scores, offsets = torch.tensor([1.0, -1.0, 4.0]), torch.tensor([0, 2, 2, 3])
    assert response_rewards(scores, None, offsets) is scores
    assert response_rewards(scores, torch.tensor([0.5, 0.25, 2.0]), offsets).tolist() == [1.75, -1.0, 6.0]


@pytest.mark.checklist(30)
@given(ragged(empty_rows=True), seeds)
def test_potential_rewards_of_a_response_sum_to_0(shape, seed):
    mask, offsets = shape
    found = potential_rewards(normal(seed, len(mask)), mask, offsets, 1.0)
    assert torch.allclose(segment_sum(found, offsets), torch.zeros(len(offsets) - 1, dtype=F64), atol=1e-12)
    assert not found[~mask].any()


@pytest.mark.checklist(30)
@given(ragged(empty_rows=True), seeds, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_discounted_potential_rewards_sum_to_0_over_chosen_tokens(shape, seed, gamma):
    """A step is a chosen token, so γ counts those alone."""
    mask, offsets = shape
    found = potential_rewards(normal(seed, len(mask)), mask, offsets, gamma)
    for start, end in rows_of(offsets):
        chosen = found[start:end][mask[start:end]].tolist()
        assert sum(gamma**t * f for t, f in enumerate(chosen)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.checklist(30)
def test_potential_rewards_by_hand():
    """γ = 0.9. Row 1: Φ = 1, 2, (7 not chosen), 5 → last counts as 0. Row 2 begins again. Row 3 chooses nothing."""
    potentials = torch.tensor([1.0, 2.0, 7.0, 5.0, 4.0, 3.0, 9.0])
    mask = torch.tensor([True, True, False, True, True, True, False])
    found = potential_rewards(potentials, mask, torch.tensor([0, 4, 6, 7]), 0.9)
    assert found.tolist() == pytest.approx([0.9, 1.8 - 1.0, 0.0, -2.0, 3.6, -4.0, 0.0])
    assert potentials.tolist() == [1.0, 2.0, 7.0, 5.0, 4.0, 3.0, 9.0]


@pytest.mark.checklist(30)
@given(ragged(), seeds, st.floats(0, 1), st.floats(0, 1))
def test_a_critic_that_knows_the_potentials_sees_the_same_advantages(shape, seed, gamma, lam):
    """With V' = V − Φ, the TD errors are those of the task without hints; also where responses were cut and go on."""
    mask, offsets = shape
    potentials, values = normal(seed, len(mask)), normal(seed + 1, len(mask))
    rewards = torch.where(mask, normal(seed + 2, len(mask)), 0.0)
    goes_on = normal(seed + 3, len(offsets) - 1) > 0
    after = torch.where(goes_on, normal(seed + 4, len(goes_on)), 0.0)  # V of the state behind a cut
    hinted = rewards + potential_rewards(potentials, mask, offsets, gamma, goes_on)
    before = torch.zeros_like(values)  # Φ of the state that each token is chosen in
    end_potential = torch.zeros_like(after)
    for b, (start, end) in enumerate(rows_of(offsets)):
        now = 0.0
        for t in range(start, end):
            before[t] = now
            now = float(potentials[t]) if mask[t] else now
        end_potential[b] = now if goes_on[b] else 0.0
    plain, _ = gae(rewards, values, mask, offsets, gamma, lam, after)
    found, _ = gae(hinted, values - before, mask, offsets, gamma, lam, after - end_potential)
    assert torch.allclose(found, plain, atol=1e-10)


class Enumerated:
    """All responses of `length` tokens from a vocabulary, a score for each and a potential for each prefix."""

    def __init__(self, vocabulary, length, seed):
        self.vocabulary, self.length = vocabulary, length
        self.paths = list(itertools.product(range(vocabulary), repeat=length))
        prefixes = [p for n in range(length + 1) for p in itertools.product(range(vocabulary), repeat=n)]
        self.number = {prefix: i for i, prefix in enumerate(prefixes)}
        self.states = torch.tensor([[self.number[p[:t]] for t in range(length)] for p in self.paths])
        self.after = torch.tensor([[self.number[p[: t + 1]] for t in range(length)] for p in self.paths])
        self.actions = torch.tensor(self.paths)
        self.scores = normal(seed, len(self.paths))
        self.potentials = 3 * normal(seed + 1, len(prefixes))
        self.logits = normal(seed + 2, len(prefixes), vocabulary)

    def rewards(self, gamma, hints):
        """[paths, length], by the functions that a run uses."""
        count = len(self.paths) * self.length
        mask, offsets = torch.ones(count).bool(), torch.arange(0, count + 1, self.length)
        extra = (
            potential_rewards(self.potentials[self.after].flatten(), mask, offsets, gamma) if hints else None
        )
        flat = token_rewards(self.scores, torch.zeros(count, dtype=F64), 0.0, mask, offsets, extra)
        return flat.view(-1, self.length)

    def objective_gradient(self, gamma, hints):
        """∇ E[Σ γ^t r_t] by autograd through the enumerated expectation."""
        logits = self.logits.clone().requires_grad_()
        chosen = torch.log_softmax(logits, -1)[self.states, self.actions]
        discounts = gamma ** torch.arange(self.length, dtype=F64)
        value = (chosen.sum(-1).exp() * (discounts * self.rewards(gamma, hints)).sum(-1)).sum()
        return torch.autograd.grad(value, logits)[0]

    def policy_gradient(self, gamma, hints):
        """E[Σ γ^t ∇ log π(a_t) G_t], G_t the discounted return from t on."""
        rewards = self.rewards(gamma, hints)
        returns = torch.stack(
            [
                sum(gamma ** (k - t) * rewards[:, k] for k in range(t, self.length))
                for t in range(self.length)
            ],
            -1,
        )
        logits = self.logits.clone().requires_grad_()
        chosen = torch.log_softmax(logits, -1)[self.states, self.actions]
        discounts = gamma ** torch.arange(self.length, dtype=F64)
        weight = chosen.sum(-1).exp().detach()[:, None] * discounts * returns
        return torch.autograd.grad((weight * chosen).sum(), logits)[0]

    def optimal_policy(self, gamma, hints):
        """The best token after each prefix, by backward induction on the rewards."""
        reward = {
            path[: t + 1]: float(r)
            for path, row in zip(self.paths, self.rewards(gamma, hints), strict=True)
            for t, r in enumerate(row)
        }
        value, best = dict.fromkeys(self.paths, 0.0), {}
        for n in range(self.length - 1, -1, -1):
            for prefix in itertools.product(range(self.vocabulary), repeat=n):
                q = [reward[(*prefix, a)] + gamma * value[(*prefix, a)] for a in range(self.vocabulary)]
                value[prefix], best[prefix] = max(q), q.index(max(q))
        return best


@pytest.mark.checklist(30)
@given(st.sampled_from([2, 3]), seeds, st.sampled_from([0.5, 0.9, 1.0]), examples=20)
def test_potentials_leave_the_optimum_and_every_policys_gradient_alone(vocabulary, seed, gamma):
    task = Enumerated(vocabulary, 3, seed)
    assert float((task.rewards(gamma, True) - task.rewards(gamma, False)).abs().max()) > 0.01
    assert task.optimal_policy(gamma, True) == task.optimal_policy(gamma, False)
    exact = task.objective_gradient(gamma, False)
    assert float(exact.abs().max()) > 0
    assert torch.allclose(task.objective_gradient(gamma, True), exact, atol=1e-10)
    assert torch.allclose(task.policy_gradient(gamma, False), exact, atol=1e-10)
    assert torch.allclose(task.policy_gradient(gamma, True), exact, atol=1e-10)


@pytest.mark.checklist(30)
def test_a_hint_that_is_no_potential_difference_does_move_the_optimum():
    """The same numbers as plain rewards of tokens: so the tests above can fail."""
    task = Enumerated(2, 3, 0)
    plain = task.optimal_policy(1.0, False)
    task.scores = task.scores + task.potentials[task.after].sum(-1)
    assert task.optimal_policy(1.0, False) != plain
