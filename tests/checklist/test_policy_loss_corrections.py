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

from proxlm.rl.corrections import MODES, effective_share, importance_weights, split_log_weights
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
    ("mode", "bounds", "wanted"),
    [
        ("none", (), [1, 1, 1, 1, 1, 1]),
        ("token", (), [4, 0.25, 1.5, 1, 0.5, 0.8]),
        ("token", (0.5, 2), [4, 0.25, 1.5, 1, 0.5, 0.8]),
        ("token_truncate", (), [4, 0.25, 1.5, 1, 0.5, 0.8]),
        ("token_truncate", (0.9, 2), [2, 0.25, 1.5, 1, 0.5, 0.8]),
        ("token_truncate", (0, 1), [1, 0.25, 1, 1, 0.5, 0.8]),
        ("token_mask", (), [4, 0.25, 1.5, 1, 0.5, 0.8]),
        ("token_mask", (0.499999, 5), [4, 0, 1.5, 1, 0.5, 0.8]),
        ("token_mask", (0.6, 2), [0, 0, 1.5, 1, 0, 0.8]),
        ("sequence", (), [1, 1, 1.5, 1, 0.4, 0.4]),
        ("sequence_truncate", (0.9, 1.2), [1, 1, 1.2, 1, 0.4, 0.4]),
        ("sequence_mask", (0.499999, 5), [1, 1, 1.5, 1, 0, 0]),
        ("sequence_mask", (0.3, 1.4), [1, 1, 0, 1, 0.4, 0.4]),
        ("geometric_mask", (0.99, 1.01), [1, 1, 0, 1, 0, 0]),
        ("geometric_mask", (0.6, 2), [1, 1, 1, 1, 1, 1]),  # √0.4 = 0.632
        ("geometric_mask", (0.64, 2), [1, 1, 1, 1, 0, 0]),
    ],
)
def test_weights_by_hand(mode, bounds, wanted):
    found = weights(mode, *bounds)
    assert found.tolist() == pytest.approx(wanted)
    assert not found.requires_grad


@pytest.mark.checklist(20)
def test_the_bounds_belong_to_what_is_kept_and_logs_are_clamped():
    one, mask, offsets = torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.tensor([0, 1])
    for mode in ("token_mask", "sequence_mask", "geometric_mask"):
        assert importance_weights(one, mask, offsets, mode, 1.0, 1.0).tolist() == [1.0]
        assert importance_weights(one, mask, offsets, mode, 1.01, 2.0).tolist() == [0.0]
        assert importance_weights(one, mask, offsets, mode, 0.1, 0.99).tolist() == [0.0]
    for log, limit, wanted in ((30, None, 20), (-30, None, -20), (30, 3.0, 3), (-30, 3.0, -3)):
        more = {} if limit is None else {"max_log_ratio": limit}
        found = importance_weights(f64([log]), mask, offsets, "token", **more)
        assert float(found) == pytest.approx(math.exp(wanted), rel=1e-9)


@pytest.mark.checklist(20)
def test_a_geometric_mask_does_not_grow_with_the_length():
    """Log-ratios of 0.02: kept by a bound of 1.03 at any length, dropped by 1.015; others' tokens do not count."""
    for length in (1, 10, 1000):
        logs, mask = f64([0.02] * length + [5.0]), torch.tensor([True] * length + [False])
        for high, kept in ((1.03, 1.0), (1.015, 0.0)):
            found = importance_weights(logs, mask, torch.tensor([0, length + 1]), "geometric_mask", 0.9, high)
            assert found.tolist() == [kept] * length + [1.0]


@pytest.mark.checklist(20)
def test_a_response_without_a_chosen_token_has_weights_of_1():
    logs, mask = f64([3.0, 3.0]), torch.zeros(2, dtype=torch.bool)
    for mode in MODES:
        found = importance_weights(logs, mask, torch.tensor([0, 2]), mode, 0.5, 2.0)
        assert found.tolist() == [1.0, 1.0]


@pytest.mark.checklist(20)
@given(
    st.lists(st.tuples(st.floats(-1e4, 0), st.booleans()), min_size=1, max_size=8),
    st.sampled_from(MODES),
)
def test_the_same_policy_has_weight_1(tokens, mode):
    logprobs = f64([t[0] for t in tokens])
    mask = torch.tensor([t[1] for t in tokens])
    offsets = torch.tensor([0, len(tokens) // 2, len(tokens)])
    logs = split_log_weights(logprobs, logprobs.clone(), None, ~mask)
    for part in logs:
        found = importance_weights(part, mask, offsets, mode, 0.5, 2.0)
        assert torch.equal(found, torch.ones_like(logprobs))


@pytest.mark.checklist(20)
def test_the_two_log_weights_by_hand():
    """π_old, π_v, π_roll of four tokens, the first two of the present version, for which π_v is π_old."""
    old, trainer, rollout = f64([-1.0, -2, -3, -4]), f64([-9.0, -9, -5, -4.5]), f64([-1.5, -2, -6, -4])
    stale = torch.tensor([False, False, True, True])
    found = split_log_weights(old, rollout, trainer, stale)
    assert found.engine.tolist() == [0.5, 0.0, 1.0, -0.5]
    assert found.staleness.tolist() == [0.0, 0.0, 2.0, 0.5]
    unknown = split_log_weights(old, rollout, None, stale)
    assert unknown.engine.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert unknown.staleness.tolist() == [0.0, 0.0, 3.0, 0.0]
    for logs in (found, unknown):
        assert torch.equal(logs.engine + logs.staleness, old - rollout)


@pytest.mark.checklist(20)
def test_effective_share_by_hand():
    """Equal weights: all count. One of four: a quarter. (1 + 2 + 3)² / (3 · 14)."""
    assert effective_share(f64([0.3, 0.3, 0.3])) == pytest.approx(1.0)
    assert effective_share(f64([0, 7.0, 0, 0])) == 0.25
    assert effective_share(f64([1.0, 2, 3])) == pytest.approx(36 / 42)
    assert effective_share(torch.zeros(3)) == 0.0


@pytest.mark.checklist(20)
def test_what_is_no_mode_or_does_not_fit_is_refused():
    zero, mask, offsets = torch.zeros(1), torch.ones(1, dtype=torch.bool), torch.tensor([0, 1])
    with pytest.raises(ValueError, match='got "truncate"'):
        importance_weights(zero, mask, offsets, "truncate")
    with pytest.raises(ValueError, match="shapes do not fit"):
        importance_weights(zero, mask, torch.tensor([0, 2]), "token")
    with pytest.raises(ValueError, match="shapes differ"):
        split_log_weights(zero, zero, None, torch.ones(2, dtype=torch.bool))


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

    def expected(self, engine, staleness=("none",), loss=ppo_loss, behaviour=None, trainer=None):
        """The expectation under the behaviour policy of what the update climbs, at π = π_old.

        engine, staleness: mode and bounds of the two weights; trainer: logits of π_v, between behaviour and π_old.
        """
        logits = self.policy.clone().requires_grad_()
        new = self.logprobs(logits)
        sampled = self.logprobs(self.behaviour if behaviour is None else behaviour)
        mask = torch.ones(len(new), dtype=torch.bool)
        offsets = torch.arange(0, len(new) + 1, 2)
        version = None if trainer is None else self.logprobs(trainer)
        logs = split_log_weights(new.detach(), sampled, version, mask & (trainer is not None))
        factor = importance_weights(logs.engine, mask, offsets, *engine)
        factor = factor * importance_weights(logs.staleness, mask, offsets, *staleness)
        advantages = self.reward.flatten().repeat_interleave(2)
        terms = loss(LossInputs(new, new.detach(), advantages, mask, offsets))
        probability = sampled.view(-1, 2).sum(-1).exp().repeat_interleave(2)
        (-(probability * factor * terms.loss)).sum().backward()
        return logits.grad


@pytest.mark.checklist(20)
@pytest.mark.parametrize("loss", [ppo_loss, pg_loss, cispo_loss, dppo_loss, surrogate_loss])
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_untruncated_sequence_weights_are_unbiased_by_enumeration(vocabulary, loss):
    """One cause, or both: the product of the two weights of a response is π_old / π_roll, whatever lies between."""
    for seed in range(5):
        case = Enumerated(vocabulary, seed)
        assert torch.allclose(case.expected(("sequence",), loss=loss), case.exact(), atol=1e-12)
        between = case.normal(vocabulary + 1, vocabulary)
        both = case.expected(("sequence",), ("sequence",), loss, trainer=between)
        assert torch.allclose(both, case.exact(), atol=1e-12)


@pytest.mark.checklist(20)
@pytest.mark.checklist(21)
@pytest.mark.parametrize("vocabulary", [2, 3])
def test_each_token_is_weighed_by_the_version_that_sampled_it(vocabulary):
    """The first token is four updates old and the second one update, and an engine rounds both: two weights each."""
    for seed in range(5):
        case = Enumerated(vocabulary, seed)
        older, newer, rounding = (case.normal(vocabulary + 1, vocabulary) for _ in range(3))
        versions = torch.cat([older[:1], newer[1:]])  # row 0 is of the first token
        sampled = versions + 0.1 * rounding
        logs = split_log_weights(
            *(case.logprobs(table) for table in (case.policy, sampled, versions)),
            torch.ones(2 * vocabulary**2, dtype=torch.bool),
        )
        of_policy, of_older, of_newer = (table.softmax(-1) for table in (case.policy, older, newer))
        for (x, y), (first, second) in zip(case.responses, logs.staleness.view(-1, 2).exp(), strict=True):
            assert float(first) == pytest.approx(float(of_policy[0, x] / of_older[0, x]))
            assert float(second) == pytest.approx(float(of_policy[1 + x, y] / of_newer[1 + x, y]))
        assert torch.allclose(logs.engine, case.logprobs(versions) - case.logprobs(sampled))
        found = case.expected(("sequence",), ("sequence",), behaviour=sampled, trainer=versions)
        assert torch.allclose(found, case.exact(), atol=1e-12)


@pytest.mark.checklist(20)
@pytest.mark.parametrize("vocabulary", [2, 3])
@pytest.mark.parametrize(
    "weight",
    [
        ("none",),
        ("token",),
        ("token_truncate", 0.0, 1.05),
        ("token_mask", 0.9, 1.1),
        ("sequence_truncate", 0.0, 1.05),
        ("sequence_mask", 0.9, 1.1),
        ("geometric_mask", 0.9, 1.1),
    ],
)
def test_every_other_weight_is_biased_by_enumeration(vocabulary, weight):
    for seed in range(5):
        case = Enumerated(vocabulary, seed)
        exact, between = case.exact(), case.normal(vocabulary + 1, vocabulary)
        one_cause = case.expected(weight)
        of_two = case.expected(("sequence",), weight, trainer=between)
        for found in (one_cause, of_two):
            assert float((found - exact).norm() / exact.norm()) > 0.02


@pytest.mark.checklist(20)
@pytest.mark.parametrize("mode", MODES)
def test_on_policy_every_weight_is_unbiased(mode):
    case = Enumerated(3, 0)
    found = case.expected((mode, 0.5, 2.0), (mode, 0.5, 2.0), behaviour=case.policy, trainer=case.policy)
    assert torch.allclose(found, case.exact(), atol=1e-12)


def decoupled(given_inputs, behaviour, mode="token"):
    """π_prox / π_behaviour · the clipped objective of π / π_prox, as the update forms it."""
    logs = given_inputs.old_logprobs - behaviour
    factor = importance_weights(logs, given_inputs.action_mask, given_inputs.offsets, mode)
    return factor * ppo_loss(given_inputs).loss


@pytest.mark.checklist(21)
@pytest.mark.parametrize("mode", ["token", "sequence"])
@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0), some_advantage), min_size=2, max_size=6))
def test_behaviour_equal_to_proximal_is_ppo(mode, tokens):
    new, old, advantages = zip(*tokens, strict=True)
    given_inputs = inputs(new, old, advantages, offsets=[0, 1, len(tokens)])
    loss = decoupled(given_inputs, given_inputs.old_logprobs.clone(), mode)
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
