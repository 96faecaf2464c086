"""Section 2, items 19 and 23: GSPO, CISPO, DPPO, the plain policy gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import (
    inputs,
    one,
    solved,
    some_advantage,
)

from proxlm.rl.policy_losses import (
    cispo_loss,
    dppo_loss,
    gspo_loss,
    pg_loss,
    ppo_loss,
    surrogate_loss,
)


@pytest.mark.checklist(19)
@given(
    st.lists(st.tuples(st.floats(-3, 0), st.floats(-3, 0), some_advantage), min_size=1, max_size=6),
    st.floats(0.01, 0.5),
)
def test_gspo_of_single_tokens_is_ppo(tokens, eps):
    new, old, advantages = zip(*tokens, strict=True)
    more = {"clip_low": eps, "clip_high": 2 * eps, "offsets": list(range(len(tokens) + 1))}
    one_ratio, one_gradient = solved(gspo_loss, inputs(new, old, advantages, **more))
    per_token, token_gradient = solved(ppo_loss, inputs(new, old, advantages, **more))
    for a, b in zip(one_ratio, per_token, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one_gradient, token_gradient)


@pytest.mark.checklist(19)
def test_gspo_of_two_tokens_by_hand():
    """log-ratios 0.3 and −0.1: s = e^0.1 for both; each token gets half of each term's gradient −A s."""
    terms, gradient = solved(gspo_loss, inputs([-0.7, -1.1], [-1.0, -1.0], [2.0, 2.0]))
    s = math.exp(0.1)
    assert terms.loss.tolist() == pytest.approx([-2 * s, -2 * s])
    assert gradient.tolist() == pytest.approx([-2 * s, -2 * s])
    assert terms.ratio.tolist() == pytest.approx([math.exp(0.3), math.exp(-0.1)])
    assert not terms.clipped.any()
    narrow, none = solved(gspo_loss, inputs([-0.7, -1.1], [-1.0, -1.0], [2.0, 2.0], clip_high=0.05))
    assert narrow.loss.tolist() == pytest.approx([-2.1, -2.1])
    assert narrow.clipped.tolist() == [True, True]
    assert none.tolist() == [0.0, 0.0]


@pytest.mark.checklist(19)
def test_gspo_has_one_ratio_per_response_of_its_chosen_tokens():
    """Rows of 3 and 2 tokens, one of the first not chosen and far off: it is left out of the mean."""
    given_inputs = inputs(
        [0.1, 9.0, 0.3, -0.2, -0.4],
        [0.0] * 5,
        [1.0, 1.0, 1.0, -1.0, -1.0],
        offsets=[0, 3, 5],
        mask=[True, False, True, True, True],
        clip_low=0.5,
        clip_high=0.5,
    )
    terms, gradient = solved(gspo_loss, given_inputs)
    first, second = math.exp(0.2), math.exp(-0.3)
    assert terms.loss.tolist() == pytest.approx([-first] * 3 + [second] * 2)
    assert float(gradient[1]) == 0.0
    assert gradient[[3, 4]].tolist() == pytest.approx([second, second])


@pytest.mark.checklist(19)
def test_cispo_learns_beyond_the_clip():
    for ratio, weight, clipped in ((5.0, 1.2, True), (0.1, 0.8, True), (1.1, 1.1, False), (0.9, 0.9, False)):
        for advantage in (2.0, -2.0):
            loss, gradient, flag = one(cispo_loss, ratio, advantage)
            assert gradient == pytest.approx(-weight * advantage)
            assert gradient != 0
            assert loss == pytest.approx(-weight * advantage * math.log(ratio))
            assert flag is clipped
    assert one(cispo_loss, 5.0, 1.0, clip_low=0.1, clip_high=0.28)[1] == pytest.approx(-1.28)
    assert one(cispo_loss, 0.1, 1.0, clip_low=0.1, clip_high=0.28)[1] == pytest.approx(-0.9)


def moved(loss, before, after, advantage, **more):
    terms, gradient = solved(loss, inputs([math.log(after)], [math.log(before)], [advantage], **more))
    return bool(terms.clipped), float(gradient)


@pytest.mark.checklist(19)
def test_dppo_judges_by_probability_not_by_ratio():
    # .9 → .99: ratio 1.1, within PPO's clip; the probability moved by 0.09.
    assert moved(ppo_loss, 0.9, 0.99, 1.0) == (False, pytest.approx(-1.1))
    assert moved(dppo_loss, 0.9, 0.99, 1.0) == (False, pytest.approx(-1.1))
    assert moved(dppo_loss, 0.9, 0.99, 1.0, divergence_limit=0.05) == (True, 0.0)
    # 1e-4 → 2e-4: ratio 2, cut by PPO; the probability hardly moved.
    assert moved(ppo_loss, 1e-4, 2e-4, 1.0) == (True, 0.0)
    assert moved(dppo_loss, 1e-4, 2e-4, 1.0, divergence_limit=0.05) == (False, pytest.approx(-2.0))
    assert moved(dppo_loss, 0.9, 0.6, -1.0) == (True, 0.0)
    assert moved(dppo_loss, 0.9, 0.75, -1.0) == (False, pytest.approx(0.75 / 0.9))


@pytest.mark.checklist(19)
@given(
    st.floats(1e-4, 0.9999),
    st.floats(1e-4, 0.9999),
    st.sampled_from([-2.0, 0.0, 1.5]),
    st.floats(0.01, 0.9),
)
def test_dppo_cuts_iff_it_goes_on_away_beyond_the_limit(before, after, advantage, limit):
    """Never where the step would move back towards the old policy."""
    terms, gradient = solved(
        dppo_loss, inputs([math.log(after)], [math.log(before)], [advantage], divergence_limit=limit)
    )
    apart = after - before
    if abs(abs(apart) - limit) < 1e-9:
        return
    cut = abs(apart) > limit and apart * advantage > 0
    assert bool(terms.clipped) is cut
    assert float(gradient) == pytest.approx(0.0 if cut else -advantage * after / before, rel=1e-9)
    assert float(terms.loss.detach()) == pytest.approx(-advantage * after / before, rel=1e-9)


@pytest.mark.checklist(23)
def test_policy_gradient_and_surrogate_by_hand():
    terms, gradient = solved(pg_loss, inputs([-0.5, -2.0], [-1.0, -1.0], [2.0, -3.0]))
    assert terms.loss.tolist() == [1.0, -6.0]
    assert gradient.tolist() == [-2.0, 3.0]
    assert not terms.clipped.any()
    terms, gradient = solved(surrogate_loss, inputs([-0.5, -2.0], [-1.0, -1.0], [2.0, -3.0]))
    wanted = [-2 * math.exp(0.5), 3 * math.exp(-1.0)]
    assert terms.loss.tolist() == gradient.tolist() == pytest.approx(wanted)
    assert not terms.clipped.any()
