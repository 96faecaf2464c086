"""A step's metrics of conversations count what the policy wrote, not what it was told."""

from __future__ import annotations

import pytest
import torch

from proxlm.train.ppo.metrics import experience_metrics, mean_repetition
from proxlm.types import Experience, Prompt, Rollout, Scores, Sequences

# Tokens of the policy are below 50, those of the environment above.
ROWS = [
    [1, 2, 90, 91, 90, 91, 90, 91, 1, 2, 1, 2],  # pairs 12 | 12 21 12: half of the four are new
    [3, 4, 5, 90, 6],  # pairs 34 45, not 56: all new
    [7, 90, 7, 90, 7],  # no pair
]


def conversations():
    sequences = Sequences.from_lists([[8]] * 3, ROWS)
    count = len(sequences.response_tokens)
    return Rollout(
        prompts=[Prompt(i, (8,), "") for i in range(3)],
        sequences=sequences,
        action_mask=sequences.response_tokens < 50,
        logprobs=torch.zeros(count),
        finish=["done"] * 3,
        texts=[""] * 3,
        policy_versions=torch.zeros(count, dtype=torch.int64),
        rewards=torch.zeros(count),
    )


def metrics_of(rollout, rewards):
    mask = rollout.action_mask
    zeros = torch.zeros(len(mask))
    told = torch.where(mask, 0.0, 99.0)  # what must not be counted
    experience = Experience(
        rollout.sequences, mask, zeros, told, zeros, zeros, told, told, correction=torch.ones(len(mask))
    )
    scores = Scores(torch.tensor(rewards))
    return experience_metrics(experience, rollout, scores, scores.total, told, told)


def test_length_and_its_correlation_with_the_reward_are_of_the_policys_tokens():
    row = metrics_of(conversations(), [6.0, 4.0, 3.0])
    assert row["response_length"] == pytest.approx((6 + 4 + 3) / 3)
    assert row["reward_length_correlation"] == pytest.approx(1.0)  # with 12, 5 and 5 tokens it is 0.94
    assert (row["kl"], row["entropy"], row["return_mean"]) == (0.0, 0.0, 0.0)


def test_repetition_is_of_pairs_that_the_policy_wrote():
    assert mean_repetition(conversations()) == pytest.approx((0.5 + 0.0 + 0.0) / 3)
    assert metrics_of(conversations(), [6.0, 4.0, 3.0])["repetition"] == pytest.approx(0.5 / 3)
