"""Section 2, item 19: Clip-Cov and KL-Cov."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import f64, inputs, one, solved

from proxlm.rl.covariance import clip_cov_tokens, kl_cov_tokens, token_covariance
from proxlm.rl.policy_losses import clip_cov_loss, kl_cov_loss, ppo_loss, surrogate_loss

ALL = torch.ones(5, dtype=torch.bool)
ORDER = f64([0.5, 0.1, 0.9, 0.3, 0.7])


def places(mask):
    return mask.nonzero()[:, 0].tolist()


@pytest.mark.checklist(19)
def test_covariance_by_hand():
    """log π −1, −3, −2 and A 4, 0, 2, means −2 and 2; a token that was not chosen counts in neither mean."""
    mask = torch.tensor([True, False, True, True])
    found = token_covariance(f64([-1.0, -50.0, -3.0, -2.0]), f64([4.0, 99.0, 0.0, 2.0]), mask)
    assert found.tolist() == [2.0, 0.0, 2.0, 0.0]
    assert found.dtype == torch.float64
    assert token_covariance(f64([-1.0]), f64([4.0]), torch.tensor([False])).tolist() == [0.0]
    for shapes in ((2, 3, 3), (3, 2, 3), (3, 3, 2)):
        a, b, c = shapes
        with pytest.raises(ValueError, match="shapes differ"):
            token_covariance(torch.zeros(a), torch.zeros(b), torch.ones(c, dtype=torch.bool))


@pytest.mark.checklist(19)
@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(-4, 4)), min_size=1, max_size=20))
def test_the_mean_is_the_covariance(pairs):
    logprobs, advantages = (f64(x) for x in zip(*pairs, strict=True))
    found = token_covariance(logprobs, advantages, torch.ones(len(pairs), dtype=torch.bool)).mean()
    wanted = (logprobs * advantages).mean() - logprobs.mean() * advantages.mean()
    assert float(found) == pytest.approx(float(wanted), abs=1e-10)


@pytest.mark.checklist(19)
def test_a_step_lowers_the_entropy_by_the_covariance():
    """A softmax over 4 tokens, one exact policy-gradient step of size η in the logits (as in the paper's Lemma 1):
    the entropy changes by −η Cov(log π, π (A − Ā)), here to first order."""
    logits, advantages = f64([0.3, -1.0, 0.8, 0.0]), f64([1.0, -0.5, 0.7, -2.0])
    p = torch.softmax(logits, 0)
    change = p * (advantages - (p * advantages).sum())

    def entropy(x):
        return -(torch.softmax(x, 0) * torch.log_softmax(x, 0)).sum()

    step = 1e-6
    got = (entropy(logits + step * change) - entropy(logits)) / step
    wanted = -((p * p.log() * change).sum() - (p * p.log()).sum() * (p * change).sum())
    assert float(got) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.checklist(19)
def test_clip_cov_takes_some_within_the_bounds():
    covariance = f64([1.0, 5.0, 3.0, 0.99, 5.01])
    # Both bounds are within; the lowest random numbers first: token 1 (0.1), then 0 (0.5), then 2 (0.9).
    wanted = {0.0: [], 0.19: [], 0.2: [1], 0.4: [0, 1], 0.6: [0, 1, 2], 1.0: [0, 1, 2]}
    for share, tokens in wanted.items():
        assert places(clip_cov_tokens(covariance, ORDER, ALL, share, 1.0, 5.0)) == tokens, share
    mask = torch.tensor([True, False, True, True, True])
    assert places(clip_cov_tokens(covariance, ORDER, mask, 0.5, 1.0, 5.0)) == [0, 2]
    assert places(clip_cov_tokens(covariance, ORDER, mask, 0.49, 1.0, 5.0)) == [0]


@pytest.mark.checklist(19)
def test_kl_cov_takes_the_highest():
    covariance = f64([1.0, -5.0, 3.0, 1.0, 1.0])
    # Tokens 0, 3 and 4 are equal; their random numbers are 0.5, 0.3 and 0.7.
    wanted = {0.0: [], 0.2: [2], 0.4: [2, 3], 0.6: [0, 2, 3], 0.8: [0, 2, 3, 4], 1.0: [0, 1, 2, 3, 4]}
    for share, tokens in wanted.items():
        assert places(kl_cov_tokens(covariance, ORDER, ALL, share)) == tokens, share
    mask = torch.tensor([True, True, False, True, False])
    assert places(kl_cov_tokens(covariance, ORDER, mask, 0.34)) == [3]
    assert places(kl_cov_tokens(covariance, ORDER, mask, 1.0)) == [0, 1, 3]


@pytest.mark.checklist(19)
def test_the_share_is_not_lost_to_rounding():
    """0.29 · 100 is 28.999…96 in floating point."""
    many = torch.arange(100, dtype=torch.float64)
    assert len(places(kl_cov_tokens(many, many, many >= 0, 0.29))) == 29
    assert places(kl_cov_tokens(many, many, many >= 0, 0.02)) == [98, 99]
    assert places(kl_cov_tokens(many, many, many >= 0, 0.02998)) == [98, 99]
    # Of a hundred equal ones, those with the lowest random numbers.
    assert places(kl_cov_tokens(many * 0, -many, many >= 0, 0.03)) == [97, 98, 99]


@pytest.mark.checklist(19)
@given(st.permutations(range(8)), st.floats(0, 1))
def test_the_order_of_tokens_does_not_matter(order, share):
    covariance = f64([3.0, 1.0, 1.0, 1.0, 2.0, -1.0, 0.5, 4.0])
    uniforms = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask, at = torch.tensor([True] * 6 + [False] + [True]), torch.tensor(order)
    for choose, more in ((clip_cov_tokens, (1.0, 3.0)), (kl_cov_tokens, ())):
        wanted = choose(covariance, uniforms, mask, share, *more)[at]
        assert torch.equal(choose(covariance[at], uniforms[at], mask[at], share, *more), wanted)


def apart(*flags):
    return {"covariant": torch.tensor(flags)}


@pytest.mark.checklist(19)
def test_clip_cov_loss_by_hand():
    """Three tokens at ratio 1.1, 1.1 and 1.3: the second is left out, the third is beyond PPO's clip."""
    new, old = [math.log(1.1), math.log(1.1), math.log(1.3)], [0.0] * 3
    terms, gradient = solved(clip_cov_loss, inputs(new, old, [2.0] * 3, **apart(False, True, False)))
    assert terms.loss.tolist() == pytest.approx([-2.2, 0.0, -2.4])
    assert gradient.tolist() == pytest.approx([-2.2, 0.0, 0.0])
    assert terms.clipped.tolist() == [False, True, True]
    assert terms.ratio.tolist() == pytest.approx([1.1, 1.1, 1.3])
    nothing, wanted = (
        solved(loss, inputs(new, old, [2.0] * 3, **apart(False, False, False)))
        for loss in (clip_cov_loss, ppo_loss)
    )
    assert torch.equal(nothing[1], wanted[1])


@pytest.mark.checklist(19)
def test_kl_cov_loss_by_hand():
    """−ρ A, plus β (ρ − 1 − log ρ) where the token is apart: its gradient is β (ρ − 1)."""
    for ratio, advantage in ((2.0, 1.5), (0.5, -1.0), (1.0, 1.0)):
        loss, gradient, clipped = one(kl_cov_loss, ratio, advantage, **apart(True), covariance_kl_coef=0.3)
        assert loss == pytest.approx(-ratio * advantage + 0.3 * (ratio - 1 - math.log(ratio)))
        assert gradient == pytest.approx(-ratio * advantage + 0.3 * (ratio - 1))
        assert not clipped
        assert one(kl_cov_loss, ratio, advantage, **apart(False)) == one(surrogate_loss, ratio, advantage)
    assert one(kl_cov_loss, 2.0, 1.0, **apart(True))[1] == pytest.approx(-1.0)  # β is 1 unless it is set


@pytest.mark.checklist(19)
def test_the_penalty_is_the_kl_from_the_old_policy():
    """Over all 4 tokens of a vocabulary, each with its π_old: value and gradient of KL(π_old ‖ π)."""
    logits, old = (
        f64([0.3, -1.0, 0.8, 0.0]).requires_grad_(),
        torch.log_softmax(f64([0.0, 0.5, 0.2, -1.0]), 0),
    )
    new = torch.log_softmax(logits, 0)
    given_inputs = inputs([0.0] * 4, old.tolist(), [0.0] * 4, **apart(*[True] * 4))
    given_inputs = type(given_inputs)(**{**vars(given_inputs), "logprobs": new})
    found = (old.exp() * kl_cov_loss(given_inputs).loss).sum()
    wanted = (old.exp() * (old - new)).sum()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()))
    got, exact = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, wanted))
    assert torch.allclose(got, exact, atol=1e-12)


@pytest.mark.checklist(19)
@pytest.mark.parametrize("loss", [clip_cov_loss, kl_cov_loss])
def test_without_the_tokens_it_is_refused(loss):
    with pytest.raises(ValueError, match="covariant"):
        loss(inputs([0.0], [0.0], [1.0]))
