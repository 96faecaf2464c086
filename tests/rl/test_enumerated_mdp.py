"""Every trajectory of a small decision process: the expected PPO gradient is the exact gradient of J.

Vocabulary 3, length 3: 27 trajectories, a tabular policy with one row of logits per prefix. J is the expected
score less β times the KL to a reference, computed by enumeration and differentiated by autograd. PPO's side goes
through the library's own functions, token_rewards → gae → clipped_policy_loss, each trajectory weighted by its
probability.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from proxlm.rl.advantages import gae
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import clipped_policy_loss
from proxlm.rl.shaping import token_rewards

V, T, BETA = 3, 3, 0.3
TRAJECTORIES = list(itertools.product(range(V), repeat=T))
PREFIXES = [p for t in range(T) for p in itertools.product(range(V), repeat=t)]
ROW = {prefix: i for i, prefix in enumerate(PREFIXES)}
STATES = torch.tensor([[ROW[y[:t]] for t in range(T)] for y in TRAJECTORIES])  # [27, 3]
ACTIONS = torch.tensor(TRAJECTORIES)
OFFSETS = torch.arange(len(TRAJECTORIES) + 1) * T
MASK = torch.ones(len(TRAJECTORIES) * T, dtype=torch.bool)


def setting(seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        normal(len(PREFIXES), V),
        normal(len(PREFIXES), V),
        normal(len(TRAJECTORIES)),
        normal(len(PREFIXES)),
    )


def trajectory_logprobs(logits):
    """log π of each token of each trajectory, [27, 3]."""
    return torch.log_softmax(logits, -1)[STATES, ACTIONS]


def objective(logits, reference, scores):
    logp, ref = trajectory_logprobs(logits), trajectory_logprobs(reference)
    probability = logp.sum(-1).exp()
    return (probability * (scores - BETA * (logp - ref).sum(-1))).sum()


def exact_gradient(logits, reference, scores):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits, reference, scores), logits)[0]


def state_values(logits, reference, scores):
    """V^π of each prefix: the expected rest of the shaped rewards, by enumeration."""
    logp, ref = trajectory_logprobs(logits), trajectory_logprobs(reference)
    values = torch.zeros(len(PREFIXES), dtype=torch.float64)
    for prefix, i in ROW.items():
        rows = [k for k, y in enumerate(TRAJECTORIES) if y[: len(prefix)] == prefix]
        later = logp[rows, len(prefix) :].sum(-1)
        to_come = scores[rows] - BETA * (logp - ref)[rows, len(prefix) :].sum(-1)
        values[i] = (later.exp() * to_come).sum()
    return values


def ppo_gradient(logits, reference, scores, values, lam):
    """−∇ of the loss, in expectation over all trajectories, at ρ = 1."""
    logits = logits.clone().requires_grad_()
    logp = trajectory_logprobs(logits)
    old = logp.detach()
    kl = kl_estimate(old, trajectory_logprobs(reference))
    rewards = token_rewards(scores, kl.flatten(), BETA, MASK, OFFSETS)
    advantages, _ = gae(rewards, values[STATES].flatten(), MASK, OFFSETS, 1.0, lam)
    terms = clipped_policy_loss(logp.flatten(), old.flatten(), advantages)
    weight = torch.repeat_interleave(old.sum(-1).exp(), T)
    return torch.autograd.grad(-(weight * terms.loss).sum(), logits)[0]


@pytest.mark.checklist(39)
@pytest.mark.parametrize("seed", range(5))
def test_monte_carlo_advantages_are_unbiased_with_any_critic(seed):
    logits, reference, scores, anything = setting(seed)
    got = ppo_gradient(logits, reference, scores, anything, lam=1.0)
    assert torch.allclose(got, exact_gradient(logits, reference, scores), atol=1e-12)


@pytest.mark.checklist(39)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95])
def test_gae_is_unbiased_with_the_true_critic(seed, lam):
    logits, reference, scores, _ = setting(seed)
    values = state_values(logits, reference, scores)
    got = ppo_gradient(logits, reference, scores, values, lam)
    assert torch.allclose(got, exact_gradient(logits, reference, scores), atol=1e-12)


@pytest.mark.checklist(39)
def test_gae_is_biased_with_a_wrong_critic():
    """λ < 1 trusts the critic: with a wrong one the gradient is off, as the theory says."""
    logits, reference, scores, wrong = setting(0)
    got = ppo_gradient(logits, reference, scores, wrong, lam=0.5)
    assert float((got - exact_gradient(logits, reference, scores)).abs().max()) > 1e-2


@pytest.mark.checklist(39)
def test_gradient_ascent_reaches_the_regularised_optimum():
    """π* ∝ π_ref · exp(score / β) over whole trajectories (total variation ≤ 0.02)."""
    logits, reference, scores, _ = setting(1)
    for _ in range(4000):
        values = state_values(logits, reference, scores)
        logits = logits + 1.0 * ppo_gradient(logits, reference, scores, values, lam=0.95)
    optimum = torch.softmax(trajectory_logprobs(reference).sum(-1) + scores / BETA, 0)
    reached = trajectory_logprobs(logits).sum(-1).exp()
    assert float((reached - optimum).abs().sum()) / 2 <= 0.02
