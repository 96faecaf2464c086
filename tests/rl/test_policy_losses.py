"""The other policy losses, rollout weights, moments, and the trust region, by hand and by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.rl.corrections import rollout_weights
from proxlm.rl.losses import clipped_policy_loss, entropy_coefficient, token_weights
from proxlm.rl.moments import Moments, clip_advantages, scale_scores, with_values
from proxlm.rl.policy_losses import (
    LossInputs,
    cispo_loss,
    dppo_loss,
    gspo_loss,
    pg_loss,
    ppo_loss,
    surrogate_loss,
)
from proxlm.rl.shaping import overlong_penalty, potential_rewards, turn_rewards
from proxlm.rl.trust_region import conjugate_gradient, natural_step, trust_region_step

F, T = False, True
LOSSES = [ppo_loss, pg_loss, gspo_loss, cispo_loss, dppo_loss, surrogate_loss]


def loss_inputs(new, old, advantages, offsets=None, mask=None, **more):
    new = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    return LossInputs(
        logprobs=new,
        old_logprobs=torch.tensor(old, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        action_mask=torch.ones(len(new), dtype=torch.bool) if mask is None else torch.tensor(mask),
        offsets=torch.tensor(offsets or [0, len(new)]),
        **more,
    )


def gradient(loss, given):
    return torch.autograd.grad(loss(given).loss.sum(), given.logprobs)[0].tolist()


@pytest.mark.checklist(16)
def test_dual_clip():
    """ρ = 10, A = −1, c = 3: loss 3 and no gradient; below c the gradient is that of ρ A."""
    far = loss_inputs([math.log(10)], [0.0], [-1.0], dual_clip=3.0)
    assert ppo_loss(far).loss.tolist() == [3.0]
    assert gradient(ppo_loss, far) == [0.0]
    assert ppo_loss(far).clipped.tolist() == [T]
    near = loss_inputs([math.log(2.9)], [0.0], [-1.0], dual_clip=3.0)
    assert gradient(ppo_loss, near) == pytest.approx([2.9])
    positive = loss_inputs([math.log(10)], [0.0], [1.0], dual_clip=3.0)
    assert ppo_loss(positive).loss.tolist() == [-1.2]
    assert ppo_loss(loss_inputs([math.log(10)], [0.0], [0.0], dual_clip=3.0)).clipped.tolist() == [F]


@pytest.mark.checklist(14)
def test_borders_of_the_clip():
    for advantage in (1.0, -1.0):
        terms = clipped_policy_loss(torch.zeros(1), torch.zeros(1), torch.tensor([advantage]), 0.0, 0.0)
        assert terms.clipped.tolist() == [F]
    assert clipped_policy_loss(torch.tensor([-1.0]), torch.zeros(1), torch.zeros(1)).clipped.tolist() == [F]


@pytest.mark.checklist(17)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("new", [1e4, -1e4])
def test_finite_at_any_log_ratio(loss, advantage, new):
    found = loss(loss_inputs([new, 0.0], [0.0, 0.0], [advantage, advantage]))
    assert all(bool(t.isfinite().all()) for t in (found.loss, found.ratio, found.approx_kl))
    assert not found.ratio.requires_grad
    assert not found.approx_kl.requires_grad


@pytest.mark.checklist(19)
def test_gspo_of_single_tokens_is_ppo():
    new, old, a = [-0.1, -2.0, -1.0], [-0.5, -1.0, -1.0], [1.0, -1.0, 2.0]
    one = loss_inputs(new, old, a, offsets=[0, 1, 2, 3])
    assert torch.allclose(gspo_loss(one).loss, ppo_loss(one).loss)
    assert gradient(gspo_loss, one) == pytest.approx(gradient(ppo_loss, one))
    assert torch.equal(gspo_loss(one).clipped, ppo_loss(one).clipped)


@pytest.mark.checklist(19)
def test_gspo_of_two_tokens_by_hand():
    """Log-ratios 0.1 and 0.2, one token not chosen: s = exp(0.15), each token half of its gradient."""
    found = loss_inputs([0.1, 5.0, 0.2], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0], mask=[T, F, T], offsets=[0, 3])
    s = math.exp(0.15)
    assert gspo_loss(found).loss.tolist() == pytest.approx([-2 * s] * 3)
    weighted = (gspo_loss(found).loss * torch.tensor([1.0, 0, 1])).sum()
    assert torch.autograd.grad(weighted, found.logprobs)[0].tolist() == pytest.approx([-2 * s, 0, -2 * s])


@pytest.mark.checklist(19)
def test_cispo_learns_beyond_the_clip():
    beyond = loss_inputs([1.0, -1.0, 0.1], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0])
    assert gradient(cispo_loss, beyond) == pytest.approx([-1.2, 0.8, -math.exp(0.1)])
    assert cispo_loss(beyond).clipped.tolist() == [T, T, F]
    assert gradient(ppo_loss, beyond)[:2] == [0.0, 0.0]


@pytest.mark.checklist(19)
def test_dppo_judges_by_probability_not_by_ratio():
    likely = loss_inputs([math.log(0.99)], [math.log(0.9)], [1.0], divergence_limit=0.05)
    assert gradient(ppo_loss, likely)[0] == pytest.approx(-1.1)
    assert gradient(dppo_loss, likely) == [0.0]
    rare = loss_inputs([math.log(2e-4)], [math.log(1e-4)], [1.0], divergence_limit=0.05)
    assert gradient(ppo_loss, rare) == [0.0]
    assert gradient(dppo_loss, rare) == pytest.approx([-2.0])
    back = loss_inputs([math.log(0.1), math.log(0.9)], [math.log(0.9), math.log(0.1)], [1.0, -1.0])
    assert gradient(dppo_loss, back) == pytest.approx([-1 / 9, 9.0])  # on the way back: never cut
    away = loss_inputs([math.log(0.1), math.log(0.9)], [math.log(0.9), math.log(0.1)], [-1.0, 1.0])
    assert gradient(dppo_loss, away) == [0.0, 0.0]
    assert dppo_loss(away).clipped.tolist() == [T, T]


@pytest.mark.checklist(23)
def test_policy_gradient_and_surrogate():
    found = loss_inputs([0.3, -0.2], [0.0, 0.0], [2.0, -1.0])
    assert gradient(pg_loss, found) == [-2.0, 1.0]
    assert gradient(surrogate_loss, found) == pytest.approx([-2 * math.exp(0.3), math.exp(-0.2)])


def test_defaults_of_the_loss_inputs():
    assert loss_inputs([0.0], [0.0], [0.0])[5:] == (0.2, 0.2, 0.0, 0.2, 20.0)


@pytest.mark.checklist(22)
def test_entropy_floor_is_a_thermostat():
    assert entropy_coefficient(0.1, 5.0, 0.0) == 0.1
    assert entropy_coefficient(0.1, 0.9, 1.0) == 0.1
    assert entropy_coefficient(0.1, 1.0, 1.0) == 0.0


@pytest.mark.checklist(18)
def test_weights_of_a_single_token_and_over_ranks():
    mask, offsets = torch.tensor([T, F]), torch.tensor([0, 2])
    assert token_weights(mask, offsets, "token", 4).tolist() == [1, 0]
    assert token_weights(mask, offsets, "fixed", 4).tolist() == [0.25, 0]
    three = torch.tensor([T, T, T])
    assert token_weights(three, torch.tensor([0, 3]), "token", 4, lambda n: n * 2).sum() == 0.5
    assert token_weights(three, torch.tensor([0, 3]), "sequence", 4, lambda n: n * 2).sum() == 0.5


@pytest.mark.checklist(20)
def test_rollout_weights_by_hand():
    old, rollout = (
        torch.tensor([0.0, -1.0, -1.0, 0.0]).double(),
        torch.tensor([-1.0, -1.0, 1.0, 3.0]).double(),
    )
    mask, offsets = torch.tensor([T, T, T, F]), torch.tensor([0, 2, 4])

    def weights(*arguments):
        return rollout_weights(old, rollout, mask, offsets, *arguments).tolist()

    e = math.e
    assert weights("none") == [1, 1, 1, 1]
    assert weights("full") == pytest.approx([e, 1, e**-2, 1])
    assert weights("truncate") == pytest.approx([2, 1, e**-2, 1])
    assert weights("mask") == pytest.approx([e, 1, 0, 1])
    assert weights("full", "sequence") == pytest.approx([e, e, e**-2, 1])
    assert weights("mask", "token", 2.0, 0.1, 2.0) == pytest.approx([0, 1, e**-2, 1])
    assert rollout_weights(old, old, mask, offsets, "truncate").tolist() == [1, 1, 1, 1]
    for bad in (("other",), ("full", "other")):
        with pytest.raises(ValueError, match="must be"):
            weights(*bad)


@pytest.mark.checklist(21)
def test_decoupled_loss_with_behaviour_equal_to_proximal_is_ppo():
    found = loss_inputs([0.3, -0.5], [0.0, -0.1], [1.0, -2.0])
    w = rollout_weights(
        found.old_logprobs, found.old_logprobs.clone(), found.action_mask, found.offsets, "full"
    )
    assert torch.equal(w * ppo_loss(found).loss, ppo_loss(found).loss)


@pytest.mark.checklist(28)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.integers(0, 20))
def test_moments_do_not_depend_on_the_split(values, at):
    whole = torch.tensor(values, dtype=torch.float64)
    parts = with_values(with_values(Moments(), whole[:at]), whole[at:])
    assert parts.n == len(values)
    assert parts.mean == pytest.approx(float(whole.mean()), abs=1e-9)
    spread = float(whole.std(correction=0))
    assert parts.std == pytest.approx(spread, abs=1e-6) or (spread < 1e-6)


@pytest.mark.checklist(27)
def test_scaled_scores_of_the_same_samples_have_mean_0_and_std_1():
    scores = torch.tensor([1.0, 2.0, 5.0, 8.0])
    scaled, _ = scale_scores(scores, None, torch.zeros(4), with_values(Moments(), scores), 0.0)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-6)
    assert float(scaled.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert (Moments().std, with_values(Moments(), torch.tensor([3.0])).std) == (1.0, 1.0)


@pytest.mark.checklist(28)
def test_scale_with_token_rewards_and_clip():
    moments = Moments(2, 1.0, 8.0)  # mean 1, std 2
    total, tokens = scale_scores(
        torch.tensor([9.0]), torch.tensor([2.0, 4.0]), torch.tensor([6.0]), moments, 0.0
    )
    assert tokens.tolist() == [1, 2]
    assert float(total + tokens.sum()) == pytest.approx((15 - 1) / 2)
    total, tokens = scale_scores(
        torch.tensor([9.0]), torch.tensor([2.0, 4.0]), torch.tensor([6.0]), moments, 5.0
    )
    assert float(total + tokens.sum()) == pytest.approx(5)
    assert clip_advantages(torch.tensor([-9.0, 1, 9]), 3).tolist() == [-3, 1, 3]
    assert clip_advantages(torch.tensor([-9.0]), 0).tolist() == [-9]


@pytest.mark.checklist(29)
def test_overlong_penalty_by_hand():
    lengths = torch.tensor([5, 6, 8, 10, 12])
    assert overlong_penalty(lengths, 10, 4, 2.0).tolist() == [0, 0, 1, 2, 2]
    assert overlong_penalty(lengths, 10, 0, 2.0).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.checklist(30)
def test_potentials_by_hand_and_their_sum():
    phi, mask = torch.tensor([1.0, 7, 3, 5, 2]), torch.tensor([T, F, T, T, T])
    offsets = torch.tensor([0, 4, 5])
    assert potential_rewards(phi, mask, offsets, 0.5).tolist() == [0.5, 0, 1.5 - 1, -3, 0]
    sums = potential_rewards(phi, mask, offsets, 1.0)
    assert sums[:4].sum() == sums[4:].sum() == 0
    assert turn_rewards(torch.tensor([4.0, 6.0]), torch.tensor([F, T, F, T])).tolist() == [0, 4, 0, 6]
    with pytest.raises(ValueError, match="3 rewards for 1 turns"):
        turn_rewards(torch.ones(3), torch.tensor([T, F]))


def spd(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size), torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.checklist(23)
@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_solves(seed):
    matrix, target = spd(seed)
    found = conjugate_gradient(lambda v: matrix @ v, target, 12, 1e-20)
    assert torch.allclose(found, torch.linalg.solve(matrix, target), atol=1e-6)
    assert conjugate_gradient(lambda v: matrix @ v, target, 0).tolist() == [0] * 6


@pytest.mark.checklist(23)
@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_the_natural_step_is_newtons(seed):
    matrix, target = spd(seed)
    step = natural_step(target, lambda v: matrix @ v, 0.01, 12)
    newton = torch.linalg.solve(matrix, target)
    assert torch.allclose(step / step.norm(), newton / newton.norm(), atol=1e-6)
    assert float(step @ matrix @ step) / 2 == pytest.approx(0.01, rel=1e-6)


@pytest.mark.checklist(23)
def test_line_search_halves_until_both_hold():
    seen = []

    def measure(step):
        seen.append(float(step[0]))
        return (1.0, 0.02) if len(seen) == 1 else (-1.0, 0.0) if len(seen) == 2 else (0.5, 0.005)

    found = trust_region_step(torch.ones(1), lambda v: v, measure, 0.01)
    full = math.sqrt(2 * 0.01)
    assert seen == pytest.approx([full, full / 2, full / 4])
    assert (found.tries, found.accepted, found.kl, found.improvement) == (2, T, 0.005, 0.5)
    assert found.step.tolist() == pytest.approx([full / 4])
    refused = trust_region_step(torch.ones(1), lambda v: v, lambda s: (-1.0, 0.0), 0.01, halvings=3)
    assert (refused.step.tolist(), refused.tries, refused.accepted) == ([0.0], 3, F)
