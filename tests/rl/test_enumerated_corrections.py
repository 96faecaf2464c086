"""By enumeration: which rollout weights are unbiased, and that potentials change no policy's worth."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.rl.advantages import gae
from proxlm.rl.corrections import rollout_weights
from proxlm.rl.shaping import potential_rewards, segment_sum

V, T = 2, 2
TRAJECTORIES = list(itertools.product(range(V), repeat=T))
STATES = torch.tensor([[0, 1 + y[0]] for y in TRAJECTORIES])
ACTIONS = torch.tensor(TRAJECTORIES)
OFFSETS = torch.arange(len(TRAJECTORIES) + 1) * T
MASK = torch.ones(len(TRAJECTORIES) * T, dtype=torch.bool)


def world(seed):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return normal(3, V), normal(3, V), normal(len(TRAJECTORIES))


def logprobs(logits):
    return torch.log_softmax(logits, -1)[STATES, ACTIONS]


def gradients(seed, mode, level):
    """(the expected weighted policy gradient under the behaviour policy, the exact gradient of E[score])."""
    policy, behaviour, scores = world(seed)
    policy.requires_grad_()
    logp, mu = logprobs(policy), logprobs(behaviour)
    exact = torch.autograd.grad((logp.sum(-1).exp() * scores).sum(), policy, retain_graph=True)[0]
    w = rollout_weights(logp.detach().flatten(), mu.flatten(), MASK, OFFSETS, mode, level, cap=1.0)
    per_token = w.view(-1, T) * scores[:, None] * logp
    got = torch.autograd.grad((mu.sum(-1).exp()[:, None] * per_token).sum(), policy)[0]
    return got, exact


@pytest.mark.checklist(20)
@pytest.mark.checklist(21)
@pytest.mark.parametrize("seed", range(4))
def test_untruncated_weights_of_whole_responses_are_unbiased(seed):
    got, exact = gradients(seed, "full", "sequence")
    assert torch.allclose(got, exact, atol=1e-12)


@pytest.mark.checklist(20)
@pytest.mark.parametrize(("mode", "level"), [("full", "token"), ("truncate", "sequence"), ("none", "token")])
def test_other_weights_are_biased(mode, level):
    got, exact = gradients(0, mode, level)
    assert float((got - exact).norm() / exact.norm()) > 0.02


@pytest.mark.checklist(30)
@pytest.mark.parametrize("seed", range(3))
def test_potentials_change_the_worth_of_no_policy(seed):
    policy, _, scores = world(seed)
    phi = torch.randn(len(MASK), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # A potential of a state is the same for every trajectory that passes through it.
    phi = phi.view(-1, T)
    phi[:, 0] = phi[[0, 0, 2, 2], 0]
    shaped = scores + segment_sum(potential_rewards(phi.flatten(), MASK, OFFSETS, 1.0), OFFSETS)
    probability = logprobs(policy).sum(-1).exp()
    assert float((probability * shaped).sum()) == pytest.approx(
        float((probability * scores).sum()), abs=1e-12
    )
    assert torch.allclose(shaped, scores)


@pytest.mark.checklist(1)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_is_the_quadratic_sum_for_any_input(steps, gamma, lam):
    rewards, values = torch.tensor(steps, dtype=torch.float64).T
    n = len(steps)
    following = torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])
    delta = rewards + gamma * following - values
    expected = [sum((gamma * lam) ** (k - t) * float(delta[k]) for k in range(t, n)) for t in range(n)]
    got = gae(rewards, values, torch.ones(n, dtype=torch.bool), torch.tensor([0, n]), gamma, lam)[0]
    assert got.tolist() == pytest.approx(expected, abs=1e-9)
