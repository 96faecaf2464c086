"""Edges and defaults of the mathematics, each of which a small change of an operator or a constant would move."""

from __future__ import annotations

import math

import pytest
import torch

from proxlm.rl.advantages import (
    explained_variance,
    explained_variance_by_position,
    gae,
    length_adaptive_lambda,
    turn_gae,
)
from proxlm.rl.corrections import rollout_weights
from proxlm.rl.estimators import AdvantageInputs, reinforce_advantages, rloo_advantages
from proxlm.rl.kl import kl_estimate
from proxlm.rl.logprobs import chunked_logprobs, logprobs_and_entropy
from proxlm.rl.losses import clipped_policy_loss, clipped_value_loss
from proxlm.rl.moments import Moments, clip_advantages, scale_scores, with_values
from proxlm.rl.policy_losses import LossInputs, cispo_loss, dppo_loss, gspo_loss, log_ratio, pg_loss
from proxlm.rl.shaping import last_action_index, potential_rewards, response_rewards
from proxlm.rl.trust_region import conjugate_gradient, natural_step, trust_region_step

F, T = False, True


def one(x):
    return torch.tensor([float(x)], dtype=torch.float64)


@pytest.mark.checklist(1)
def test_an_empty_row_beside_a_single_token():
    advantages, returns = gae(one(1), one(0.5), torch.tensor([T]), torch.tensor([0, 1, 1]), 1.0, 0.95)
    assert (advantages.tolist(), returns.tolist()) == ([0.5], [1.0])


@pytest.mark.checklist(7)
def test_a_row_that_begins_with_others_words():
    mask = torch.tensor([F, T, T])
    advantages, returns = turn_gae(
        torch.tensor([0.0, 1, 2]), torch.zeros(3), mask, torch.tensor([0, 3]), 1.0, 1.0
    )
    assert (advantages.tolist(), returns.tolist()) == ([0, 3, 3], [0, 3, 3])


@pytest.mark.checklist(6)
def test_lambda_of_the_shortest_responses():
    assert length_adaptive_lambda(torch.tensor([0, 1, 2]), 2.0).tolist() == pytest.approx([0.5, 0.5, 0.75])


@pytest.mark.checklist(13)
def test_explained_variance_of_two_and_of_a_later_row():
    values, returns = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert explained_variance(values, returns, torch.tensor([T, T])) == pytest.approx(0.75)
    # The second row's halves decide: right in its first, wrong in its second.
    values, returns = torch.tensor([0.0, 1, 2, 5, 5]), torch.tensor([0.0, 1, 2, 3, 7])
    first, second = explained_variance_by_position(
        values, returns, torch.tensor([F, T, T, T, T]), torch.tensor([0, 1, 5]), parts=2
    )
    assert (first, second) == (pytest.approx(1.0), pytest.approx(0.0))
    assert len(explained_variance_by_position(values, returns, torch.ones(5) > 0, torch.tensor([0, 5]))) == 4


@pytest.mark.checklist(25)
def test_k3_is_clamped_on_both_sides():
    for big, expected in ((1e4, math.expm1(-20) + 20), (-1e4, math.expm1(20) - 20)):
        assert float(kl_estimate(one(big), one(0), "k3")) == pytest.approx(expected)


@pytest.mark.checklist(33)
def test_precision_and_defaults_of_log_probs():
    logits, tokens = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 6])
    coarse = logprobs_and_entropy(logits.bfloat16(), tokens)[0]
    assert coarse.dtype == torch.float32
    fine = torch.log_softmax(logits.bfloat16().float(), -1)[range(3), tokens]
    assert torch.allclose(coarse, fine, atol=1e-6)
    assert logprobs_and_entropy(logits.double(), tokens)[0].dtype == torch.float64
    plain, entropy = chunked_logprobs(logits, lambda h: h, tokens)
    assert entropy is None
    assert torch.allclose(plain, torch.log_softmax(logits, -1)[range(3), tokens])


@pytest.mark.checklist(10)
def test_value_loss_on_both_sides_of_the_clip():
    def loss(v, old, r, *clip):
        return float(clipped_value_loss(one(v), one(old), one(r), *clip))

    assert loss(-0.5, 0, -1) == pytest.approx(0.32)
    assert loss(0.5, 0, 1) == pytest.approx(0.32)
    assert loss(0.5, 0, 1, 0) == pytest.approx(0.125)
    assert loss(3, 0, 5, 1) == pytest.approx(8)


@pytest.mark.checklist(16)
def test_dual_clip_leaves_positive_advantages_and_its_border():
    def terms(ratio, a):
        return clipped_policy_loss(one(math.log(ratio)), one(0), one(a), dual_clip=2.0)

    assert float(terms(0.5, 0.5).loss) == pytest.approx(-0.25)
    assert float(terms(10, -3).loss) == pytest.approx(6)
    at = clipped_policy_loss(one(0), one(0), one(-1), dual_clip=1.0)
    assert at.clipped.tolist() == [F]


@pytest.mark.checklist(28)
def test_moments_and_clips_at_their_edges():
    assert Moments() == (0.0, 0.0, 0.0)
    assert with_values(Moments(), torch.zeros(0)) == Moments()
    assert Moments(2, 0.0, 0.5).std == 0.5
    assert Moments(1, 0.0, 0.0).std == 1.0
    scores, none = torch.tensor([-9.0, 0.2, 9.0]), torch.zeros(3)
    assert scale_scores(scores, None, none, Moments(), 0.5)[0].tolist() == pytest.approx([-0.5, 0.2, 0.5])
    assert clip_advantages(torch.tensor([-9.0, 0.2, 9.0]), 0.5).tolist() == pytest.approx([-0.5, 0.2, 0.5])


def inputs(new, old, a, mask=None, offsets=None):
    mask = torch.tensor(mask or [T] * len(new))
    return LossInputs(
        torch.tensor(new, dtype=torch.float64, requires_grad=True),
        torch.tensor(old, dtype=torch.float64),
        torch.tensor(a, dtype=torch.float64),
        mask,
        torch.tensor(offsets or [0, len(new)]),
    )


@pytest.mark.checklist(17)
def test_log_ratios_are_clamped_on_both_sides():
    assert log_ratio(inputs([1e4, -1e4], [0, 0], [1, 1])).tolist() == [20, -20]
    for new, a, expected in ((1e4, -1.0, math.exp(20)), (-1e4, 1.0, -math.exp(-20))):
        assert gspo_loss(inputs([new], [0], [a])).loss.tolist() == pytest.approx([expected])


@pytest.mark.checklist(14)
def test_what_every_loss_reports():
    terms = pg_loss(inputs([0.3, -0.2], [0.1, 0.2], [1, 1]))
    assert terms.approx_kl.tolist() == pytest.approx([0.02, 0.08])
    assert terms.ratio.tolist() == pytest.approx([math.exp(0.2), math.exp(-0.4)])
    assert terms.clipped.tolist() == [F, F]


@pytest.mark.checklist(19)
def test_edges_of_gspo_dppo_and_cispo():
    empty = gspo_loss(inputs([0.5, 0.4], [0, 0], [1, 1], mask=[F, T], offsets=[0, 1, 2]))
    assert empty.loss.tolist() == pytest.approx([-1.0, -1.2])
    wide = {
        "logprobs": torch.tensor([math.log(0.9)], requires_grad=True),
        "old_logprobs": torch.tensor([math.log(0.1)]),
    }
    still = dppo_loss(inputs([0.0], [0.0], [0.0])._replace(**wide, advantages=torch.zeros(1)))
    assert still.clipped.tolist() == [F]
    exact = inputs([math.log(0.75)], [math.log(0.5)], [1.0])._replace(divergence_limit=0.25)
    assert dppo_loss(exact).clipped.tolist() == [F]  # at the limit: not beyond it
    terms = cispo_loss(inputs([1.0], [0.0], [1.0]))
    assert not terms.ratio.requires_grad


@pytest.mark.checklist(20)
def test_edges_of_the_rollout_weights():
    old, mask, offsets = one(0).requires_grad_(), torch.tensor([T]), torch.tensor([0, 1])

    def weight(rollout, *arguments, **more):
        return rollout_weights(old, one(rollout), mask, offsets, *arguments, **more)

    assert not weight(-0.5, "full").requires_grad
    assert float(weight(-1e4, "full")) == pytest.approx(math.exp(20))
    assert float(weight(1e4, "full")) == pytest.approx(math.exp(-20))
    assert float(weight(0.0, "mask", low=1.0, high=1.0)) == 1.0  # both limits belong to the kept range
    assert [float(weight(-math.log(w), "mask")) for w in (0.4, 0.6, 4.9, 5.1)] == pytest.approx(
        [0, 0.6, 4.9, 0]
    )


@pytest.mark.checklist(23)
def test_returns_on_tokens_that_were_not_chosen():
    given = AdvantageInputs(
        rewards=torch.tensor([1.0, 2, 4, 8]),
        values=torch.zeros(4),
        action_mask=torch.tensor([T, F, T, T]),
        offsets=torch.tensor([0, 2, 4]),
        groups=torch.tensor([0, 0]),
    )
    assert rloo_advantages(given).returns.tolist() == [3, 0, 12, 12]
    assert reinforce_advantages(given).returns.tolist() == [3, 0, 12, 8]


def test_last_action_of_an_empty_row_and_rewards_of_responses():
    assert last_action_index(torch.tensor([T]), torch.tensor([0, 1, 1])).tolist() == [0, -1]
    offsets = torch.tensor([0, 2, 3])
    assert response_rewards(torch.tensor([1.0, 2]), torch.tensor([1.0, 2, 4]), offsets).tolist() == [4, 6]
    assert response_rewards(torch.tensor([1.0, 2]), None, offsets).tolist() == [1, 2]


@pytest.mark.checklist(30)
def test_potentials_of_rows_of_one_token_and_of_none():
    """The last token's potential counts as 0, also where it is the first of all; rows do not see each other."""
    phi, mask = torch.tensor([5.0, 7, 3, 4]), torch.tensor([T, F, T, T])
    assert potential_rewards(phi, mask, torch.tensor([0, 1, 2, 4]), 1.0).tolist() == [0, 0, 3, -3]
    assert potential_rewards(phi, mask, torch.tensor([0, 1, 3, 4]), 1.0).tolist() == [0, 0, 0, 0]
    late = potential_rewards(torch.tensor([5.0, 6, 7]), torch.tensor([F, T, T]), torch.tensor([0, 2, 3]), 0.5)
    assert late.tolist() == [0, 0, 0]


@pytest.mark.checklist(23)
def test_one_iteration_is_the_steepest_descent():
    scale, target = torch.tensor([1.0, 3.0]).double(), torch.tensor([1.0, 1.0]).double()
    found = conjugate_gradient(lambda v: scale * v, target, 1)
    assert found.tolist() == pytest.approx([0.5, 0.5])  # |b|² / bᵀ M b = 2 / 4
    assert conjugate_gradient(lambda v: scale * v, torch.zeros(2).double(), 5).tolist() == [0, 0]


@pytest.mark.checklist(23)
@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_matrix_that_tells_nothing_gives_no_step(factor):
    assert natural_step(torch.ones(2), lambda v: factor * v, 0.1, 3).tolist() == [0, 0]


@pytest.mark.checklist(23)
def test_limits_of_the_line_search():
    calls = []

    def fisher(v):
        calls.append(1)
        return torch.arange(1.0, 21.0) * v

    refused = trust_region_step(torch.ones(20), fisher, lambda s: (0.0, 0.0), 0.01)
    assert (len(calls), refused.tries, refused.accepted) == (
        11,
        10,
        F,
    )  # ten iterations and the step's own length
    assert (refused.kl, refused.improvement) == (0.0, 0.0)
    tries = []
    for halvings in (0, 2):
        trust_region_step(
            torch.ones(1),
            lambda v: v,
            lambda s: tries.append(float(s)) or (-1.0, 0.0),
            0.02,
            halvings=halvings,
        )
    assert tries == pytest.approx([0.2, 0.2, 0.1, 0.05])
    assert trust_region_step(torch.ones(1), lambda v: v, lambda s: (0.1, 0.01), 0.01).accepted
    assert not trust_region_step(torch.ones(1), lambda v: v, lambda s: (0.1, float("nan")), 0.01).accepted
