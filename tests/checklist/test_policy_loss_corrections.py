"""Section 2, items 20 and 21: rollouts of another policy, by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import (
    f64,
    inputs,
    solved,
    some_advantage,
    weights,
)

from proxlm.rl.corrections import rollout_weights
from proxlm.rl.policy_losses import (
    LossInputs,
    cispo_loss,
    dppo_loss,
    pg_loss,
    ppo_loss,
    surrogate_loss,
)


@pytest.mark.checklist(20)
@pytest.mark.parametrize(
    ("mode", "level", "wanted"),
    [
        ("none", "token", [1, 1, 1, 1, 1, 1]),
        ("none", "sequence", [1, 1, 1, 1, 1, 1]),
        ("full", "token", [4, 0.25, 1.5, 1, 0.5, 0.8]),
        ("full", "sequence", [1, 1, 1.5, 1, 0.4, 0.4]),
        ("truncate", "token", [2, 0.25, 1.5, 1, 0.5, 0.8]),
        ("truncate", "sequence", [1, 1, 1.5, 1, 0.4, 0.4]),
        ("mask", "token", [4, 0, 1.5, 1, 0.5, 0.8]),
        ("mask", "sequence", [1, 1, 1.5, 1, 0, 0]),
    ],
)
def test_rollout_weights_by_hand(mode, level, wanted):
    found = weights(mode, level, low=0.499999)
    assert found.tolist() == pytest.approx(wanted)
    assert not found.requires_grad


@pytest.mark.checklist(20)
def test_the_bounds_of_the_rollout_weights():
    assert weights("truncate", cap=1.0).tolist() == pytest.approx([1, 0.25, 1, 1, 0.5, 0.8])
    assert weights("truncate", "sequence", cap=1.2).tolist() == pytest.approx([1, 1, 1.2, 1, 0.4, 0.4])
    assert weights("mask", low=0.6, high=2.0).tolist() == pytest.approx([0, 0, 1.5, 1, 0, 0.8])
    same = torch.zeros(1)  # w = 1 exactly: the bounds belong to what is kept
    mask, offsets = torch.ones(1, dtype=torch.bool), torch.tensor([0, 1])
    assert rollout_weights(same, same, mask, offsets, "mask", low=1.0, high=1.0).tolist() == [1.0]
    assert rollout_weights(same, same, mask, offsets, "mask", low=1.01).tolist() == [0.0]
    assert rollout_weights(same, same, mask, offsets, "mask", low=0.1, high=0.99).tolist() == [0.0]
    # the defaults: cap 2, bounds 0.5 and 5, clamp 20
    for ratio, mode, wanted in (
        (2.01, "truncate", 2.0),
        (1.99, "truncate", 1.99),
        (0.51, "mask", 0.51),
        (0.49, "mask", 0.0),
        (4.99, "mask", 4.99),
        (5.01, "mask", 0.0),
        (math.exp(30), "full", math.exp(20)),
        (math.exp(-30), "full", math.exp(-20)),
    ):
        found = rollout_weights(f64([math.log(ratio)]), f64([0.0]), mask, offsets, mode)
        assert float(found) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.checklist(20)
@given(
    st.lists(st.tuples(st.floats(-1e4, 0), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(["none", "full", "truncate", "mask"]),
    st.sampled_from(["token", "sequence"]),
)
def test_the_same_policy_has_weight_1(tokens, mode, level):
    logprobs = f64([t[0] for t in tokens])
    mask = torch.tensor([t[1] for t in tokens])
    offsets = torch.tensor([0, len(tokens) // 2, len(tokens)])
    found = rollout_weights(logprobs, logprobs.clone(), mask, offsets, mode, level)
    assert torch.equal(found, torch.ones_like(logprobs))


@pytest.mark.checklist(20)
def test_unknown_modes_and_levels_are_refused():
    zero, mask, offsets = torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.tensor([0, 1])
    with pytest.raises(ValueError, match='got "clip"'):
        rollout_weights(zero, zero, mask, offsets, "clip")
    with pytest.raises(ValueError, match='got "turn"'):
        rollout_weights(zero, zero, mask, offsets, "full", "turn")


class Enumerated:
    """All responses of 2 tokens; tabular policies: logits of the first token, and of the second after each first."""

    def __init__(self, vocabulary, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.responses = list(itertools.product(range(vocabulary), repeat=2))
        self.reward = self.normal(vocabulary, vocabulary)
        self.policy = self.normal(vocabulary + 1, vocabulary)
        self.behaviour = self.normal(vocabulary + 1, vocabulary)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def logprobs(self, logits):
        """[responses · 2], flat: state 0 is the start, state 1 + a follows a."""
        table = torch.log_softmax(logits, -1)
        return torch.stack([table[s, a] for x, y in self.responses for s, a in ((0, x), (1 + x, y))])

    def exact(self):
        """∇ Σ π(response) reward(response)."""
        logits = self.policy.clone().requires_grad_()
        probability = self.logprobs(logits).view(-1, 2).sum(-1).exp()
        (probability * self.reward.flatten()).sum().backward()
        return logits.grad

    def expected(self, mode, level, loss=ppo_loss, behaviour=None, **more):
        """The expectation under the behaviour policy of what the update climbs, at π = π_old."""
        logits = self.policy.clone().requires_grad_()
        new = self.logprobs(logits)
        sampled = self.logprobs(self.behaviour if behaviour is None else behaviour)
        mask = torch.ones(len(new), dtype=torch.bool)
        offsets = torch.arange(0, len(new) + 1, 2)
        factor = rollout_weights(new.detach(), sampled, mask, offsets, mode, level, **more)
        advantages = self.reward.flatten().repeat_interleave(2)
        terms = loss(LossInputs(new, new.detach(), advantages, mask, offsets))
        probability = sampled.view(-1, 2).sum(-1).exp().repeat_interleave(2)
        (-(probability * factor * terms.loss)).sum().backward()
        return logits.grad


@pytest.mark.checklist(20)
@pytest.mark.parametrize("loss", [ppo_loss, pg_loss, cispo_loss, dppo_loss, surrogate_loss])
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_untruncated_sequence_weights_are_unbiased_by_enumeration(vocabulary, loss):
    for seed in range(5):
        case = Enumerated(vocabulary, seed)
        assert torch.allclose(case.expected("full", "sequence", loss), case.exact(), atol=1e-12)


@pytest.mark.checklist(20)
@pytest.mark.parametrize("vocabulary", [2, 3])
@pytest.mark.parametrize(
    ("mode", "level", "more"),
    [
        ("none", "token", {}),
        ("full", "token", {}),
        ("truncate", "token", {"cap": 1.05}),
        ("truncate", "sequence", {"cap": 1.05}),
        ("mask", "sequence", {"low": 0.9, "high": 1.1}),
    ],
)
def test_every_other_weight_is_biased_by_enumeration(vocabulary, mode, level, more):
    for seed in range(5):
        case = Enumerated(vocabulary, seed)
        exact = case.exact()
        assert float((case.expected(mode, level, **more) - exact).norm() / exact.norm()) > 0.02


@pytest.mark.checklist(20)
@pytest.mark.parametrize("mode", ["none", "full", "truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_every_weight_is_unbiased(mode, level):
    case = Enumerated(3, 0)
    assert torch.allclose(case.expected(mode, level, behaviour=case.policy), case.exact(), atol=1e-12)


def decoupled(given_inputs, behaviour, level="token"):
    """π_prox / π_behaviour · the clipped objective of π / π_prox, as the update forms it."""
    factor = rollout_weights(
        given_inputs.old_logprobs, behaviour, given_inputs.action_mask, given_inputs.offsets, "full", level
    )
    return factor * ppo_loss(given_inputs).loss


@pytest.mark.checklist(21)
@pytest.mark.parametrize("level", ["token", "sequence"])
@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0), some_advantage), min_size=2, max_size=6))
def test_behaviour_equal_to_proximal_is_ppo(level, tokens):
    new, old, advantages = zip(*tokens, strict=True)
    given_inputs = inputs(new, old, advantages, offsets=[0, 1, len(tokens)])
    loss = decoupled(given_inputs, given_inputs.old_logprobs.clone(), level)
    (gradient,) = torch.autograd.grad(loss.sum(), given_inputs.logprobs)
    terms, wanted = solved(ppo_loss, given_inputs)
    assert torch.equal(loss, terms.loss)
    assert torch.equal(gradient, wanted)


@pytest.mark.checklist(21)
def test_decoupled_by_hand():
    """π = .3, .55; π_prox = .2, .5; π_behaviour = .4, .1: ρ = 1.5 (clipped at 1.2) and 1.1, w = .5 and 5."""
    given_inputs = inputs(f64([0.3, 0.55]).log().tolist(), f64([0.2, 0.5]).log().tolist(), [1.0, -2.0])
    loss = decoupled(given_inputs, f64([0.4, 0.1]).log())
    assert loss.tolist() == pytest.approx([0.5 * -1.2, 5 * 1.1 * 2])
    (gradient,) = torch.autograd.grad(loss.sum(), given_inputs.logprobs)
    assert gradient.tolist() == pytest.approx([0.0, 5 * 1.1 * 2])
