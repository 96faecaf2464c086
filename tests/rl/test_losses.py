"""The clipped objectives: values and gradients by hand, and the one denominator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.losses import clipped_policy_loss, clipped_value_loss, token_weights


def policy_case(ratio: float, advantage: float, **settings: float):
    """Loss and its derivative with respect to the log-prob, for one token."""
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    terms = clipped_policy_loss(logprob, zero, zero + advantage, **settings)
    terms.loss.sum().backward()
    assert logprob.grad is not None
    return float(terms.loss.detach()), float(logprob.grad), bool(terms.clipped)


@pytest.mark.checklist(14)
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # A > 0, ρ > 1.2: stop pushing up
        (0.5, 2.0, -1.0, -1.0),  # A > 0, ρ < 0.8: still pulls up
        (0.5, -2.0, 1.6, 0.0),  # A < 0, ρ < 0.8: stop pushing down
        (1.5, -2.0, 3.0, 3.0),  # A < 0, ρ > 1.2: still pushes down
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss, gradient):
    got_loss, got_gradient, clipped = policy_case(ratio, advantage)
    assert got_loss == pytest.approx(loss)
    assert got_gradient == pytest.approx(gradient)
    assert clipped == (gradient == 0.0 and advantage != 0.0)


@pytest.mark.checklist(14)
def test_the_two_clip_bounds_are_separate():
    assert policy_case(1.25, 1.0, clip_low=0.1, clip_high=0.3) == pytest.approx((-1.25, -1.25, False))
    assert policy_case(1.35, 1.0, clip_low=0.1, clip_high=0.3) == pytest.approx((-1.3, 0.0, True))
    assert policy_case(0.85, -1.0, clip_low=0.1, clip_high=0.3) == pytest.approx((0.9, 0.0, True))


@pytest.mark.checklist(14)
@given(st.floats(0.05, 20), st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3), st.floats(0.05, 0.9))
def test_gradient_is_zero_exactly_where_the_clip_binds(ratio, advantage, eps):
    _, gradient, clipped = policy_case(ratio, advantage, clip_low=eps, clip_high=eps)
    bound = (advantage > 0 and ratio > 1 + eps) or (advantage < 0 and ratio < 1 - eps)
    if min(abs(ratio - 1 - eps), abs(ratio - 1 + eps)) > 1e-9:
        assert (gradient == 0) == bound == clipped


@pytest.mark.checklist(17)
def test_log_ratio_is_clamped():
    for log_ratio, ratio in ((1e4, math.exp(20)), (-1e4, math.exp(-20))):
        logprobs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
        terms = clipped_policy_loss(logprobs, torch.zeros(1).double(), -torch.ones(1).double())
        terms.loss.sum().backward()
        assert float(terms.ratio) == pytest.approx(ratio)
        assert logprobs.grad is not None
        assert torch.isfinite(logprobs.grad).all()
        assert torch.isfinite(terms.loss).all()


def test_approx_kl_is_half_the_squared_log_ratio():
    terms = clipped_policy_loss(torch.tensor([0.3, -0.1]), torch.tensor([0.1, 0.1]), torch.ones(2))
    assert terms.approx_kl.tolist() == pytest.approx([0.02, 0.02])


@pytest.mark.checklist(10)
@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.1, 0.0, 1.0, 0.405, -0.9),  # inside ± 0.2: plain
        (0.5, 0.0, 1.0, 0.32, 0.0),  # moved beyond the clip towards the target: clipped branch wins
        (-0.5, 0.0, 1.0, 1.125, -1.5),  # moved away: the plain branch is larger and pulls back
        (0.9, 0.0, 0.0, 0.405, 0.9),
    ],
)
def test_value_loss_by_hand(value, old, target, loss, gradient):
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    got = clipped_value_loss(v, torch.tensor([old]).double(), torch.tensor([target]).double(), 0.2)
    got.sum().backward()
    assert v.grad is not None
    assert float(got.detach()) == pytest.approx(loss)
    assert float(v.grad) == pytest.approx(gradient)


@pytest.mark.checklist(10)
def test_value_loss_without_clip():
    v = torch.tensor([3.0])
    assert float(clipped_value_loss(v, torch.zeros(1), torch.ones(1), clip=0)) == 2.0


MASK = torch.tensor([True, True, False, True, False, False, True])
OFFSETS = torch.tensor([0, 3, 4, 6, 7])  # chosen tokens per row: 2, 1, 0, 1


@pytest.mark.checklist(18)
def test_weights_by_hand():
    assert token_weights(MASK, OFFSETS, "token", 5).tolist() == [0.25, 0.25, 0, 0.25, 0, 0, 0.25]
    third = pytest.approx
    assert token_weights(MASK, OFFSETS, "sequence", 5).tolist() == third(
        [1 / 6, 1 / 6, 0, 1 / 3, 0, 0, 1 / 3]
    )
    assert token_weights(MASK, OFFSETS, "fixed", 5).tolist() == third(
        [1 / 15, 1 / 15, 0, 1 / 15, 0, 0, 1 / 15]
    )


@pytest.mark.checklist(18)
def test_weights_of_nothing_are_zero():
    none = torch.zeros(3, dtype=torch.bool)
    for aggregation in ("token", "sequence", "fixed"):
        assert token_weights(none, torch.tensor([0, 1, 3]), aggregation, 4).tolist() == [0, 0, 0]


def test_shapes_and_names_are_checked():
    with pytest.raises(ValueError, match="shapes differ"):
        clipped_policy_loss(torch.zeros(2), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="shapes differ"):
        clipped_value_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match='got "mean"'):
        token_weights(MASK, OFFSETS, "mean", 5)
    with pytest.raises(ValueError, match="offsets end at 7"):
        token_weights(MASK[:3], OFFSETS, "token", 5)
