"""Section 2, items 14–17: the clipped loss, the dual clip, the clamp."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import (
    LOSSES,
    every_loss,
    f64,
    inputs,
    one,
    solved,
    some_advantage,
)

from proxlm.rl.losses import clipped_policy_loss
from proxlm.rl.policy_losses import (
    LossInputs,
    gspo_loss,
    ppo_loss,
    surrogate_loss,
)


@pytest.mark.checklist(14)
def test_gradient_is_zero_iff_the_clip_binds_on_a_grid():
    ratios = [0.01, *(k / 1000 for k in range(455, 1555, 20)), 2.0, 50.0]
    for low, high in ((0.2, 0.2), (0.1, 0.3), (0.2, 0.28)):
        for ratio, advantage in itertools.product(ratios, (-3.0, -0.5, 0.5, 3.0)):
            loss, gradient, clipped = one(ppo_loss, ratio, advantage, clip_low=low, clip_high=high)
            bound = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
            assert (gradient == 0.0) == bound == clipped, (low, high, ratio, advantage)
            near = min(max(ratio, 1 - low), 1 + high)
            assert loss == pytest.approx(-min(ratio * advantage, near * advantage))
            assert bound or gradient == pytest.approx(-ratio * advantage)


@pytest.mark.checklist(14)
@given(
    st.floats(-4, 4),
    st.floats(1e-3, 5),
    st.sampled_from([-1, 1]),
    st.floats(0.0, 0.95),
    st.floats(0.0, 2.0),
)
def test_gradient_is_zero_iff_the_clip_binds(log_ratio, size, sign, low, high):
    given_inputs = inputs([log_ratio], [0.0], [sign * size], clip_low=low, clip_high=high)
    ratio = float(given_inputs.logprobs.detach().exp())
    terms, gradient = solved(ppo_loss, given_inputs)
    bound = ratio > 1 + high if sign > 0 else ratio < 1 - low
    assert (float(gradient) == 0.0) == bound == bool(terms.clipped)
    if not bound:
        assert float(gradient) == pytest.approx(-sign * size * ratio, rel=1e-12)


@pytest.mark.checklist(14)
@given(st.floats(-3, 3), some_advantage, st.floats(0.01, 0.9))
def test_the_clipped_loss_is_never_below_the_plain_one(log_ratio, advantage, eps):
    clipped = ppo_loss(inputs([log_ratio], [0.0], [advantage], clip_low=eps, clip_high=eps)).loss
    plain = surrogate_loss(inputs([log_ratio], [0.0], [advantage])).loss
    assert float((clipped - plain).detach()) >= 0


@pytest.mark.checklist(14)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_at_the_border_of_a_clip_of_width_0_nothing_is_clipped(advantage):
    terms, gradient = solved(ppo_loss, inputs([-1.3], [-1.3], [advantage], clip_low=0.0, clip_high=0.0))
    assert not bool(terms.clipped)
    assert float(gradient) == -advantage


@pytest.mark.checklist(14)
@pytest.mark.parametrize("log_ratio", [-1.0, 1.0])
def test_without_advantage_nothing_is_clipped(log_ratio):
    terms, gradient = solved(ppo_loss, inputs([log_ratio], [0.0], [0.0]))
    assert not bool(terms.clipped)
    assert float(terms.loss.detach()) == float(gradient) == 0.0


@pytest.mark.checklist(14)
def test_defaults():
    given_inputs = inputs([0.0], [0.0], [1.0])
    assert (given_inputs.clip_low, given_inputs.clip_high, given_inputs.dual_clip) == (0.2, 0.2, 0.0)
    assert (given_inputs.divergence_limit, given_inputs.max_log_ratio) == (0.2, 20.0)
    new, old, advantages = f64([0.19, 0.17, -0.21, -0.24]), torch.zeros(4).double(), f64([1, 1, -1, -1])
    # e^0.19 = 1.209, e^0.17 = 1.185, e^-0.21 = 0.811, e^-0.24 = 0.787
    for terms in (
        clipped_policy_loss(new, old, advantages),
        ppo_loss(inputs(new.tolist(), [0.0] * 4, advantages.tolist())),
    ):
        assert terms.clipped.tolist() == [True, False, False, True]
        assert terms.ratio.tolist() == pytest.approx([1.20925, 1.18530, 0.81058, 0.78663], abs=1e-5)


@pytest.mark.checklist(14)
@every_loss
def test_only_the_loss_carries_a_gradient(name):
    terms = LOSSES[name](inputs([0.3, -0.5, 0.0], [0.1, 0.1, 0.0], [1.0, -2.0, 0.5]))
    assert terms.loss.requires_grad
    assert not any(t.requires_grad for t in (terms.ratio, terms.clipped, terms.approx_kl))
    assert terms.clipped.dtype == torch.bool
    assert terms.approx_kl.tolist() == pytest.approx([0.02, 0.18, 0.0])
    assert terms.ratio.tolist() == pytest.approx([math.exp(0.2), math.exp(-0.6), 1.0])


@pytest.mark.checklist(15)
@every_loss
@given(st.lists(st.tuples(st.floats(-20, 0), some_advantage), min_size=1, max_size=6))
def test_at_the_start_every_loss_has_the_policy_gradient(name, tokens):
    """Where π = π_old: ratio 1, KL 0, nothing clipped, and the gradient of Σ loss is −A (responses of 1 token)."""
    logprobs, advantages = [t[0] for t in tokens], [t[1] for t in tokens]
    given_inputs = inputs(logprobs, logprobs, advantages, offsets=list(range(len(tokens) + 1)))
    terms, gradient = solved(LOSSES[name], given_inputs)
    assert (terms.ratio == 1.0).all()
    assert (terms.approx_kl == 0.0).all()
    assert not terms.clipped.any()
    assert torch.equal(gradient, -given_inputs.advantages)


@pytest.mark.checklist(16)
def test_dual_clip():
    assert one(ppo_loss, 10.0, -1.0, dual_clip=3.0) == (3.0, 0.0, True)
    assert one(ppo_loss, 10.0, -1.0) == pytest.approx((10.0, 10.0, False))  # off
    assert one(ppo_loss, 2.999, -1.0, dual_clip=3.0) == pytest.approx((2.999, 2.999, False))
    assert one(ppo_loss, 2.999, -2.0, dual_clip=3.0) == pytest.approx((5.998, 5.998, False))
    assert one(ppo_loss, 3.001, -2.0, dual_clip=3.0) == pytest.approx((6.0, 0.0, True))
    assert one(ppo_loss, 0.5, -1.0, dual_clip=3.0) == pytest.approx((0.8, 0.0, True))  # the lower clip stays
    assert one(ppo_loss, 10.0, 1.0, dual_clip=3.0) == pytest.approx((-1.2, 0.0, True))  # A > 0: PPO's clip
    assert one(ppo_loss, 1.1, 1.0, dual_clip=3.0) == pytest.approx((-1.1, -1.1, False))
    assert one(ppo_loss, 10.0, 0.0, dual_clip=3.0) == (0.0, 0.0, False)


@pytest.mark.checklist(16)
def test_dual_clip_exactly_at_its_border():
    border = float(f64([1.1]).exp())
    terms, gradient = solved(ppo_loss, inputs([1.1], [0.0], [-1.0], dual_clip=border))
    assert float(terms.loss.detach()) == border
    assert not bool(terms.clipped)
    assert 0.0 <= float(gradient) <= border  # a corner: any subgradient


@pytest.mark.checklist(16)
@given(st.floats(-3, 3), some_advantage, st.floats(1.3, 6))
def test_dual_clip_bounds_the_loss_and_changes_nothing_below(log_ratio, advantage, c):
    dual, dual_gradient = solved(ppo_loss, inputs([log_ratio], [0.0], [advantage], dual_clip=c))
    plain, plain_gradient = solved(ppo_loss, inputs([log_ratio], [0.0], [advantage]))
    if abs(float(dual.ratio) - c) < 1e-9:
        return
    if advantage < 0 and float(dual.ratio) > c:
        assert float(dual.loss.detach()) == pytest.approx(-c * advantage, rel=1e-12)
        assert float(dual_gradient) == 0.0
        assert bool(dual.clipped)
    else:
        assert torch.equal(dual.loss, plain.loss)
        assert torch.equal(dual_gradient, plain_gradient)
        assert torch.equal(dual.clipped, plain.clipped)


@pytest.mark.checklist(17)
@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_finite_at_any_log_ratio(name, dtype, dual_clip):
    for gap, base, advantage in itertools.product((1e4, -1e4), (0.0, -1e4), (1.0, -1.0, 0.0)):
        new, old = (base, base - gap) if gap > 0 else (base + gap, base)
        given_inputs = LossInputs(
            torch.tensor([new, 0.0], dtype=dtype, requires_grad=True),
            torch.tensor([old, 0.0], dtype=dtype),
            torch.full((2,), advantage, dtype=dtype),
            torch.ones(2, dtype=torch.bool),
            torch.tensor([0, 1, 2]),
            dual_clip=dual_clip,
        )
        terms, gradient = solved(LOSSES[name], given_inputs)
        for tensor in (terms.loss, terms.ratio, terms.approx_kl, gradient):
            assert torch.isfinite(tensor).all()
        assert float(terms.ratio[0]) == pytest.approx(math.exp(math.copysign(20, gap)), rel=1e-5)


@pytest.mark.checklist(17)
@pytest.mark.parametrize("loss", [ppo_loss, surrogate_loss, gspo_loss])
def test_the_clamp_is_at_its_limit_and_ends_the_gradient_there(loss):
    """A < 0 and ρ large: PPO's clip does not bind, the clamp does."""
    for limit in (20.0, 2.0):
        _, inside = solved(loss, inputs([limit - 1e-6], [0.0], [-1.0], max_log_ratio=limit))
        terms, outside = solved(loss, inputs([limit + 1e-6], [0.0], [-1.0], max_log_ratio=limit))
        assert float(inside) == pytest.approx(math.exp(limit), rel=1e-5)
        assert float(outside) == 0.0
        assert float(terms.loss.detach()) == pytest.approx(math.exp(limit), rel=1e-12)
