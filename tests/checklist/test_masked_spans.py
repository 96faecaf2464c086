"""Section 1, item 3, on whole updates: tokens the policy did not choose have no part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import of_rows, parameters, prepared_by, with_experience
from update_cases import (
    AGGREGATIONS,
    CRITICS,
    close,
    learnt_from,
    made_with,
    moved,
    rollout_of,
    settings,
)

from proxlm.train.ppo.update import update


def with_spans(rollout):
    """Every response of 6 tokens or more has two spans that the policy did not choose; one row has none chosen."""
    mask = rollout.action_mask.clone()
    for b, (first, last) in enumerate(
        zip(rollout.sequences.response_offsets, rollout.sequences.response_offsets[1:], strict=False)
    ):
        first, last = int(first), int(last)
        if last - first >= 6:
            mask[first + 1 : first + 3] = False
            mask[last - 2 : last - 1] = False
        if b == 4:
            mask[first:last] = False
    return replace(rollout, action_mask=mask)


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.checklist(3)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"entropy_coef": 0.01, "kl_in": "loss", "kl_estimator": "k3"},
        {"loss": "pg"},
        {"loss": "cispo"},
        {"loss": "dppo"},
        {"loss": "gspo"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("critic", "aggregation"), list(zip(CRITICS, AGGREGATIONS, strict=True)))
def test_masked_tokens_have_no_part_in_the_update(tokenizer, critic, aggregation, more):
    """Whatever stands on them as advantage, return, value, old log-prob or correction: not a bit changes."""
    config = settings(critic, aggregation, minibatches=2, **more)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    masked = ~rollout.action_mask
    assert 10 < int(masked.sum()) < len(masked) - 10
    results = []
    for noise in (0.0, 50.0):
        made = made_with(tokenizer, config, None)
        prepared = prepared_by(made, rollout, scores)
        experience = prepared.experience
        torch.manual_seed(int(noise))
        changed = {
            name: torch.where(masked, noise * torch.randn(len(masked)), getattr(experience, name))
            for name in ("advantages", "returns", "values", "rewards", "correction")
        }
        changed |= {
            name: getattr(experience, name) - torch.where(masked, 0.1 * noise, 0.0)
            for name in ("old_logprobs", "ref_logprobs")
        }
        update(made.learner, with_experience(prepared, **changed))
        results.append(parameters(made))
    assert not moved(results[0], results[1])


@pytest.mark.checklist(18)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_same_changes_on_chosen_tokens_do_change_the_update(tokenizer, critic):
    config = settings(critic, minibatches=2)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    results = []
    for noise in (0.0, 1.0):
        made = made_with(tokenizer, config, None)
        prepared = prepared_by(made, rollout, scores)
        experience = prepared.experience
        torch.manual_seed(1)
        change = torch.where(rollout.action_mask, noise * torch.randn(len(rollout.logprobs)), 0.0)
        update(
            made.learner,
            with_experience(
                prepared,
                advantages=experience.advantages + change,
                returns=experience.returns + change,
            ),
        )
        results.append(parameters(made))
    assert moved(*results) == set(results[0])


@pytest.mark.checklist(18)
@pytest.mark.parametrize(("critic", "aggregation"), list(zip(CRITICS, AGGREGATIONS, strict=True)))
def test_a_row_without_a_chosen_token_counts_for_nothing(tokenizer, critic, aggregation):
    """Added to an experience, it does not even enter the mean over sequences."""
    config = settings(critic, aggregation, minibatches=1, micro_batch_tokens=10_000)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    results = []
    for rows in (torch.arange(12), torch.tensor([b for b in range(12) if b != 4])):
        made = made_with(tokenizer, config, None)
        update(made.learner, of_rows(prepared_by(made, rollout, scores), rows, config))
        results.append(parameters(made))
    close(results[1], results[0])


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("critic", CRITICS)
def test_masked_spans_do_not_depend_on_the_layout(tokenizer, critic):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings(critic, "sequence", micro_batch_tokens=budget)
        config = replace(config, model=replace(config.model, packed=packed))
        rollout, scores = rollout_of(tokenizer, config)
        results.append(learnt_from(tokenizer, config, with_spans(rollout), scores))
    for other in results[1:]:
        close(other, results[0])
