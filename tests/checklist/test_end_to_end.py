"""Every trajectory of a small decision process: is the expected gradient of each algorithm that of J?

Vocabulary 3, length 3: 27 trajectories, a tabular policy with one row of logits per prefix, float64.
J = E[score] − β KL(π ‖ π_ref), by enumeration and autograd. The other side is the library's own: token_rewards,
an estimator, a policy loss at ρ = 1, in expectation over trajectories or over groups of independent ones. Where
theory says that an estimate is biased, the bias is asserted with its size.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from proxlm.rl.advantages import whiten
from proxlm.rl.estimators import (
    AdvantageInputs,
    Advantages,
    gae_advantages,
    grpo_advantages,
    reinforce_advantages,
    rloo_advantages,
)
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import token_weights
from proxlm.rl.policy_losses import (
    LossInputs,
    cispo_loss,
    dppo_loss,
    gspo_loss,
    pg_loss,
    ppo_loss,
    surrogate_loss,
)
from proxlm.rl.ragged import segment_sum
from proxlm.rl.shaping import token_rewards
from proxlm.rl.trust_region import conjugate_gradient, natural_step

pytestmark = pytest.mark.checklist(39)

V, T, BETA = 3, 3, 0.3
TRAJECTORIES = list(itertools.product(range(V), repeat=T))
PREFIXES = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
ROW = {prefix: i for i, prefix in enumerate(PREFIXES)}
STATES = torch.tensor([[ROW[y[:t]] for t in range(T)] for y in TRAJECTORIES])  # [27, 3]
ACTIONS = torch.tensor(TRAJECTORIES)
EACH = torch.arange(len(TRAJECTORIES))[:, None]  # [27, 1]: every trajectory alone
PAIRS = torch.cartesian_prod(EACH[:, 0], EACH[:, 0])  # [729, 2]
TRIPLES = torch.cartesian_prod(EACH[:, 0], EACH[:, 0], EACH[:, 0])  # [19683, 3]
SEEDS = range(3)


class World(NamedTuple):
    """logits and reference [13, 3]; scores of the trajectories [27]."""

    logits: Tensor
    reference: Tensor
    scores: Tensor


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(seed):
    return World(
        normal(10 * seed, len(PREFIXES), V),
        normal(10 * seed + 1, len(PREFIXES), V),
        normal(10 * seed + 2, 27),
    )


def logprobs(logits):
    """log π of each token of each trajectory, [27, 3]."""
    return torch.log_softmax(logits, -1)[STATES, ACTIONS]


def exact(w):
    """∇J by autograd through the enumerated expectation."""
    logits = w.logits.clone().requires_grad_()
    logp = logprobs(logits)
    earned = w.scores - BETA * (logp - logprobs(w.reference)).sum(-1)
    return torch.autograd.grad((logp.sum(-1).exp() * earned).sum(), logits)[0]


def true_critic(w):
    """V of each prefix: the expected rest of the shaped rewards, by enumeration."""
    logp = logprobs(w.logits)
    gap = logp - logprobs(w.reference)
    values = torch.zeros(len(PREFIXES), dtype=torch.float64)
    for prefix, i in ROW.items():
        n = len(prefix)
        rows = [k for k, y in enumerate(TRAJECTORIES) if y[:n] == prefix]
        to_come = w.scores[rows] - BETA * gap[rows, n:].sum(-1)
        values[i] = (logp[rows, n:].sum(-1).exp() * to_come).sum()
    return values


def whitened(inputs):
    """REINFORCE++: returns, whitened over the batch; a batch is a group."""
    raw, returns = reinforce_advantages(inputs)
    size = len(raw) // (int(inputs.groups.max()) + 1)
    parts = zip(raw.split(size), inputs.action_mask.split(size), strict=True)
    return Advantages(torch.cat([whiten(part, mask) for part, mask in parts]), returns)


def gradient(w, estimator, loss, groups=EACH, values=None, lam=1.0, weights=None, **settings):
    """−∇ of the loss, in expectation over independent samples: groups [G, n] of n trajectories each."""
    count, n = groups.shape
    rows = groups.flatten()
    logits = w.logits.clone().requires_grad_()
    logp = logprobs(logits)
    chance = logp.detach().sum(-1).exp()[groups].prod(-1) / n
    new, ref = logp[rows].flatten(), logprobs(w.reference)[rows].flatten()
    old, mask = new.detach(), torch.ones(len(rows) * T, dtype=torch.bool)
    offsets = torch.arange(len(rows) + 1) * T
    rewards = token_rewards(w.scores[rows], kl_estimate(old, ref), BETA, mask, offsets)
    critic = torch.zeros_like(old) if values is None else values[STATES[rows]].flatten()
    of_row = torch.arange(count).repeat_interleave(n)
    inputs = AdvantageInputs(rewards, critic, mask, offsets, of_row, lam=lam, **settings)
    terms = loss(LossInputs(new, old, estimator(inputs).advantages, mask, offsets))
    if weights is None:
        weights = chance[of_row].repeat_interleave(T)
    return torch.autograd.grad(-(weights * terms.loss).sum(), logits)[0]


def error(got, wanted):
    return float((got - wanted).abs().max())


def cosine(a, b):
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "loss", [ppo_loss, pg_loss, surrogate_loss, cispo_loss, dppo_loss], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("case", ["any critic, λ = 1", "true critic, λ = 0", "true critic, λ = 0.9"])
def test_gae_with_each_loss_is_exact(seed, loss, case):
    """PPO, A2C, TRPO's surrogate, CISPO, DPPO."""
    w, lam = world(seed), float(case.rpartition(" ")[2])
    values = normal(99, len(PREFIXES)) if lam == 1 else true_critic(w)
    got = gradient(w, gae_advantages, loss, values=values, lam=lam, critic_lam=0.5)
    assert error(got, exact(w)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [pg_loss, ppo_loss], ids=lambda f: f.__name__)
def test_reinforce_is_exact(seed, loss):
    w = world(seed)
    assert error(gradient(w, reinforce_advantages, loss), exact(w)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [pg_loss, ppo_loss, gspo_loss], ids=lambda f: f.__name__)
def test_rloo_is_exact_over_independent_groups(seed, loss):
    w = world(seed)
    for groups in (PAIRS, TRIPLES):
        assert error(gradient(w, rloo_advantages, loss, groups), exact(w)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_grpo_without_std_is_exact_up_to_its_constant(seed):
    """(n − 1) / n: the response's own reward is part of its baseline."""
    w = world(seed)
    for groups, constant in ((PAIRS, 1 / 2), (TRIPLES, 2 / 3)):
        got = gradient(w, grpo_advantages, ppo_loss, groups, group_std=False)
        assert error(got, constant * exact(w)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_is_exact_where_a_response_has_one_advantage(seed):
    """∇ of s is the mean of the ∇ log π_t: summed over the tokens, A Σ_t ∇ log π_t."""
    w = world(seed)

    def whole(inputs):
        totals = segment_sum(inputs.rewards, inputs.offsets).repeat_interleave(T)
        return Advantages(totals, totals)

    assert error(gradient(w, whole, gspo_loss), exact(w)) < 1e-12
    # Advantages of single tokens are averaged over the response: with reward-to-go no longer exact.
    assert error(gradient(w, reinforce_advantages, gspo_loss), exact(w)) > 1e-2


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_each_aggregation_is_a_constant_times_exact_at_equal_lengths(aggregation):
    """A uniform policy, so that the batch of all 27 trajectories is the expectation; weights are float32."""
    w = world(0)._replace(logits=torch.zeros(len(PREFIXES), V, dtype=torch.float64))
    mask, offsets = torch.ones(27 * T, dtype=torch.bool), torch.arange(28) * T
    weights = token_weights(mask, offsets, aggregation, limit=T)
    got = gradient(w, reinforce_advantages, ppo_loss, weights=weights)
    assert error(got, exact(w) / T) < 1e-7


def test_gae_with_a_wrong_critic_is_biased():
    """λ < 1 trusts the critic; the bias goes to 0 with λ → 1."""
    w, wrong = world(0), normal(99, len(PREFIXES))
    biases = [
        float(
            (gradient(w, gae_advantages, ppo_loss, values=wrong, lam=lam) - exact(w)).norm() / exact(w).norm()
        )
        for lam in (0.0, 0.5, 0.95, 1.0)
    ]
    print("GAE, wrong critic: relative bias", biases)
    assert biases[0] > biases[1] > biases[2] > 1e-2 > 1e-12 > biases[3]


def test_dividing_by_the_groups_std_is_biased():
    """Of pairs only the sign of the difference is left; a prompt of large rewards weighs no more than another."""
    w = world(0)
    for groups in (PAIRS, TRIPLES):
        alone = cosine(gradient(w, grpo_advantages, ppo_loss, groups), exact(w))
        print("GRPO with std: cosine within a prompt", groups.shape[1], alone)
        assert 0.5 < alone < 0.9999
    # Two prompts, each with its own logits; the second's rewards ten times the first's.
    large = World(w.logits, w.reference, 10 * world(1).scores)
    got = [gradient(one, grpo_advantages, ppo_loss, PAIRS) for one in (w, large)]
    both = [torch.cat([exact(w), exact(large)]), torch.cat(got)]
    shares = [float(g[: len(PREFIXES)].norm() / g.norm()) for g in both]
    print("GRPO with std: cosine over two prompts", cosine(*both), "share of the first", shares)
    assert cosine(*both) < 0.95
    assert shares[1] > 2 * shares[0]
    plain = [gradient(one, grpo_advantages, ppo_loss, PAIRS, group_std=False) for one in (w, large)]
    assert cosine(torch.cat(plain), both[0]) > 1 - 1e-12


def test_whitening_over_a_small_batch_is_biased_and_over_the_whole_only_scales():
    """REINFORCE++: mean and std are of the very samples that they correct."""
    w = world(0)
    small = gradient(w, whitened, ppo_loss, PAIRS)
    assert cosine(small, exact(w)) < 0.9999
    # The batch of all trajectories of a uniform policy: the limit of large batches.
    w = w._replace(logits=torch.zeros(len(PREFIXES), V, dtype=torch.float64))
    whole = gradient(w, whitened, ppo_loss, EACH.T, weights=torch.full((27 * T,), 1 / 27))
    assert cosine(whole, exact(w)) > 1 - 1e-12
    assert abs(float(whole.norm() / exact(w).norm()) - 1) > 0.05


def sequence_kl(w, reverse=False, propagated=False):
    """∇ of the mean over visited states of KL(π ‖ π_ref) (or KL(π_ref ‖ π)), summed over a response.

    propagated: also through which states are visited.
    """
    logits = w.logits.clone().requires_grad_()
    logp, ref = torch.log_softmax(logits, -1), torch.log_softmax(w.reference, -1)
    per_state = (ref.exp() * (ref - logp)).sum(-1) if reverse else (logp.exp() * (logp - ref)).sum(-1)
    chance = logprobs(logits).sum(-1).exp()
    chance = chance if propagated else chance.detach()
    return torch.autograd.grad((chance * per_state[STATES].sum(-1)).sum(), logits)[0]


def kl_in_loss(w, estimator):
    """∇ of the mean of the estimator as a loss on sampled tokens."""
    logits = w.logits.clone().requires_grad_()
    logp = logprobs(logits)
    kl = kl_estimate(logp, logprobs(w.reference), estimator)
    return torch.autograd.grad((logp.detach().sum(-1).exp() * kl.sum(-1)).sum(), logits)[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_as_a_loss(seed):
    """k1: no gradient at all. k2: the KL's at each state. k3: that of KL(π_ref ‖ π). None reaches the future."""
    w = world(seed)
    assert error(kl_in_loss(w, "k1"), torch.zeros_like(w.logits)) < 1e-12
    assert error(kl_in_loss(w, "k2"), sequence_kl(w)) < 1e-12
    assert error(kl_in_loss(w, "k3"), sequence_kl(w, reverse=True)) < 1e-12
    k3_and_kl = cosine(kl_in_loss(w, "k3"), sequence_kl(w))
    others = k3_and_kl, cosine(kl_in_loss(w, "k2"), sequence_kl(w, propagated=True))
    print("KL in the loss: cosine of k3 and KL, of k2 and the propagated KL", others)
    assert max(others) < 0.999
    # In the reward it is propagated: J without scores is −β KL.
    only_kl = w._replace(scores=torch.zeros(27, dtype=torch.float64))
    reward = gradient(only_kl, reinforce_advantages, ppo_loss)
    assert error(reward, -BETA * sequence_kl(w, propagated=True)) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_natural_step_is_the_explicit_solution(seed):
    """TRPO: F is the Hessian of the mean KL(π_old ‖ π) of a response; logits have a null direction per state."""
    w, delta = world(seed), 1e-5
    g = gradient(w, reinforce_advantages, surrogate_loss).flatten()
    old = logprobs(w.logits)

    def kl(flat):
        return (old.sum(-1).exp() * (old - logprobs(flat.view_as(w.logits))).sum(-1)).sum()

    fisher = torch.autograd.functional.hessian(kl, w.logits.flatten())
    score = torch.autograd.functional.jacobian(lambda x: logprobs(x).sum(-1), w.logits).flatten(1)
    assert error(fisher, score.T @ (old.sum(-1).exp()[:, None] * score)) < 1e-12
    solution = torch.linalg.pinv(fisher, hermitian=True) @ g
    found = conjugate_gradient(fisher.mv, g, 100, tolerance=1e-28)
    assert error(found, solution) < 1e-9 * float(solution.abs().max())
    step = natural_step(g, fisher.mv, delta, 100)
    assert cosine(step, solution) > 1 - 1e-6
    assert float(step @ fisher @ step) / 2 == pytest.approx(delta, rel=1e-9)
    assert float(kl(w.logits.flatten() + step)) == pytest.approx(delta, rel=0.05)
