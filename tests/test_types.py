"""Joining parts: what only some of them have is filled with what it means, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proxlm.types import Prompt, Rollout, Scores, Sequences


def rollout(responses, rewards=None):
    sequences = Sequences.from_lists([[1]] * len(responses), responses)
    count = len(sequences.response_tokens)
    return Rollout(
        prompts=[Prompt(i, (1,), "") for i in range(len(responses))],
        sequences=sequences,
        action_mask=torch.ones(count, dtype=torch.bool),
        logprobs=torch.zeros(count),
        finish=["eos"] * len(responses),
        texts=[""] * len(responses),
        policy_versions=torch.zeros(count, dtype=torch.int64),
        rewards=rewards,
    )


def numbers(tensor):
    return None if tensor is None else tensor.tolist()


# Two responses of 1 and 2 tokens, then one of 2: who has numbers of tokens, and what all have together.
FIRST, SECOND = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([4.0, 8.0])


@pytest.mark.parametrize("field", ["per_token", "potentials"])
@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (None, None, None),
        (FIRST, SECOND, [0.5, 1.0, 2.0, 4.0, 8.0]),
        (FIRST, None, [0.5, 1.0, 2.0, 0.0, 0.0]),
        (None, SECOND, [0.0, 0.0, 0.0, 4.0, 8.0]),
    ],
)
def test_tokens_of_a_part_without_rewards_of_tokens_got_nothing(field, first, second, both):
    parts = [
        replace(Scores(torch.tensor([1.0, 2.0]), failed=1), **{field: first}),
        replace(Scores(torch.tensor([3.0]), failed=2), **{field: second}),
    ]
    joined = Scores.join(parts, [3, 2])
    assert joined.total.tolist() == [1.0, 2.0, 3.0]
    assert joined.failed == 3
    assert numbers(getattr(joined, field)) == both
    # Rows are still found at the tokens of their responses.
    last = joined.select(torch.tensor([2]), torch.tensor([0, 1, 3, 5]))
    assert numbers(getattr(last, field)) == (None if both is None else both[3:])


@pytest.mark.parametrize(("first", "second"), [("ab", "a"), ("a", "ab"), ("ab", "")])
def test_components_that_only_some_parts_have_are_refused(first, second):
    parts = [
        Scores(torch.zeros(1), components={name: [0.0] for name in names}) for names in (first, first, second)
    ]
    with pytest.raises(ValueError, match=r"Scores\.components: (a, )?b: all parts must have it, or none"):
        Scores.join(parts, [1, 1, 1])


def test_rewards_of_an_environment_in_only_some_parts_are_refused():
    paid, unpaid = rollout([[5], [6, 7]], FIRST), rollout([[8, 9]])
    for parts in ([paid, unpaid], [unpaid, paid]):
        with pytest.raises(ValueError, match=r"Rollout\.rewards: 1 of 2 parts have it; all must, or none"):
            Rollout.join(parts)
    both = Rollout.join([paid, rollout([[8, 9]], SECOND)])
    assert numbers(both.rewards) == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert both.sequences.response_tokens.tolist() == [5, 6, 7, 8, 9]
    assert Rollout.join([unpaid, unpaid]).rewards is None
