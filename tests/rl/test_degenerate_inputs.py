"""Empty responses, tokens before the first choice, bounds met exactly: what the maths does at its edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proxlm.rl.advantages import length_adaptive_lambda, temporal_differences, turn_gae
from proxlm.rl.corrections import importance_weights
from proxlm.rl.estimators import AdvantageInputs, Advantages, grpo_advantages, rloo_advantages
from proxlm.rl.losses import clipped_value_loss, token_weights
from proxlm.rl.policy_losses import LossInputs, dppo_loss, gspo_loss
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.rl.shaping import potential_rewards


def inputs(old: Tensor, new: Tensor, advantages: Tensor, mask: Tensor, offsets: list[int]) -> LossInputs:
    return LossInputs(
        logprobs=new.requires_grad_(),
        old_logprobs=old,
        advantages=advantages,
        action_mask=mask,
        response_offsets=torch.tensor(offsets),
        clip_low=0.2,
        clip_high=0.2,
        max_log_ratio=1.0,
        divergence_limit=0.25,
    )


def test_words_before_the_first_turn_leave_the_turns_alone() -> None:
    mask = torch.tensor([False, False, True, True])
    offsets = torch.tensor([0, 4])
    rewards, values = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([9.0, 9.0, 0.25, 9.0])
    advantages, returns = turn_gae(rewards, values, mask, offsets, 1.0, 1.0)
    assert advantages.tolist() == [0.0, 0.0, 0.75, 0.75]
    assert returns.tolist() == [9.0, 9.0, 1.0, 1.0]


def test_length_adaptive_lambda_of_the_shortest_responses() -> None:
    lam = length_adaptive_lambda(torch.tensor([0, 1, 2]), alpha=4.0)
    assert lam.tolist() == [0.75, 0.75, 0.875]
    assert length_adaptive_lambda(torch.tensor([0]), alpha=0.5).tolist() == [0.0]


@pytest.mark.parametrize("estimate", [grpo_advantages, rloo_advantages])
def test_a_group_estimate_is_nothing_where_the_policy_did_not_choose(
    estimate: Callable[[AdvantageInputs], Advantages],
) -> None:
    mask = torch.tensor([True, False, True, True])
    given = AdvantageInputs(
        rewards=torch.tensor([0.0, 0.0, 1.0, 3.0]),
        values=torch.zeros(4),
        action_mask=mask,
        offsets=torch.tensor([0, 3, 4]),
        groups=torch.tensor([0, 0]),
    )
    found = estimate(given)
    assert found.advantages[1] == 0
    assert found.returns[1] == 0
    assert bool((found.advantages[mask] != 0).all())
    assert bool((found.returns[mask] != 0).all())


def test_the_value_clip_is_a_fifth_if_nothing_else_is_said() -> None:
    loss = clipped_value_loss(torch.tensor([0.3]), torch.tensor([0.0]), torch.tensor([1.0]))
    assert loss.item() == pytest.approx(0.5 * 0.8**2)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_weights_without_any_choice_are_zero(aggregation: str) -> None:
    weights = token_weights(torch.zeros(3, dtype=torch.bool), torch.tensor([0, 2, 3]), aggregation, 4)
    assert weights.tolist() == [0.0, 0.0, 0.0]


def test_gspo_gives_a_response_without_choices_the_ratio_one() -> None:
    mask = torch.tensor([False, True])
    given = inputs(torch.zeros(2), torch.tensor([0.4, 0.1]), torch.ones(2), mask, [0, 1, 2])
    assert gspo_loss(given).loss.tolist() == pytest.approx([-1.0, -math.exp(0.1)])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gspo_has_no_gradient_beyond_the_limit_of_the_log_ratio(sign: float) -> None:
    """Where the clip does not hold it (the advantage of the other sign), the limit of ±1 nat does."""
    new = torch.tensor([1.5 * sign])
    given = inputs(torch.zeros(1), new, torch.tensor([-sign]), torch.tensor([True]), [0, 1])
    loss = gspo_loss(given).loss
    assert loss.item() == pytest.approx(sign * math.exp(sign))
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad.item() == 0


def test_dppo_cuts_beyond_its_limit_and_not_at_it() -> None:
    old, new = torch.tensor([0.25, 0.5, 0.5]).log(), torch.tensor([0.5, 0.25, 0.76]).log()
    advantages = torch.tensor([1.0, -1.0, 1.0])
    # exp(log 0.5) need not be 0.5: the limit is what the first token did move.
    given = inputs(old, new, advantages, torch.ones(3, dtype=torch.bool), [0, 3])
    at_the_first = replace(given, divergence_limit=float((new.detach().exp() - old.exp())[0]))
    clipped = dppo_loss(at_the_first).clipped.tolist()
    assert (clipped[0], clipped[2]) == (False, True)


def test_a_potential_ends_with_the_response_that_has_a_single_token() -> None:
    potentials, mask = torch.tensor([5.0, 3.0]), torch.ones(2, dtype=torch.bool)
    assert potential_rewards(potentials, mask, torch.tensor([0, 1, 2]), 1.0).tolist() == [0.0, 0.0]


def test_moments_of_nothing_and_of_numbers_that_hardly_vary() -> None:
    assert RunningStatistics() == (0.0, 0.0, 0.0)
    assert RunningStatistics(n=1.0, mean=3.0, squares=0.0).std == 1.0
    assert RunningStatistics(n=4.0, mean=1000.0, squares=1.0).std == pytest.approx(0.5)


def test_tokens_without_a_step_have_no_owner():
    ones, offsets = torch.ones(5), torch.tensor([0, 2, 5])
    none = temporal_differences(ones, ones, torch.zeros(5, dtype=torch.bool), offsets, 0.9)
    assert none.owner.tolist() == [-1] * 5
    assert none.sums(ones).tolist() == []
    some = temporal_differences(ones, ones, torch.tensor([True, False, False, True, False]), offsets, 0.9)
    assert some.owner.tolist() == [0, 0, -1, 1, 1]
    assert some.sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).tolist() == [3.0, 24.0]


def test_without_bounds_a_masking_correction_drops_nothing():
    weights = torch.tensor([0.25, 1.0, 4.0]).log()
    found = importance_weights(weights, torch.ones(3, dtype=torch.bool), torch.tensor([0, 3]), "token_mask")
    torch.testing.assert_close(found, torch.tensor([0.25, 1.0, 4.0]))
