"""Responses for which the reward is None are left out of the step, and counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blank_rollout, job, run, trainer, vowels

from proxlm.errors import RunError
from proxlm.train.ppo.collect import with_a_reward
from proxlm.types import Rollout, Scores


def some(rollout: Rollout) -> Scores:
    """As `vowels`, with none for every third row."""
    scores = vowels(rollout)
    total = scores.total.clone()
    total[::3] = math.nan
    return Scores(total, components={"vowels": total.tolist()})


@pytest.mark.parametrize(
    "ppo",
    [
        {},
        {"advantage": "grpo", "samples_per_prompt": 3, "batch_size": 4},
        {"advantage": "rloo", "samples_per_prompt": 2, "batch_size": 6},
        {"samples_per_prompt": 3, "batch_size": 4, "filter_groups": True, "filter_rounds": 2},
    ],
    ids=["gae", "grpo", "rloo", "filter"],
)
def test_a_run_leaves_them_out_and_counts_them(tokenizer: Any, tmp_path: Path, ppo: dict[str, Any]) -> None:
    rows = run(trainer(tokenizer, job(steps=2, **ppo), tmp_path, reward=some))
    for row in rows:
        assert row["reward_none"] == 4.0 * row.get("filter/draws", 1.0)
        for name in ("reward", "reward/vowels", "score", "advantage_std", "policy_loss"):
            assert math.isfinite(row[name]), name
    assert rows[0]["reward"] == pytest.approx(rows[0]["reward/vowels"])


def test_the_update_is_that_of_the_other_rows_alone(tokenizer: Any, tmp_path: Path) -> None:
    """What a response without a reward says changes nothing: statistics, advantages and weights are the others'."""

    def alone(rollout: Rollout) -> Scores:
        return some(rollout)

    first = trainer(tokenizer, job(steps=1), tmp_path / "a", reward=some)
    run(first)
    kept = torch.tensor([b % 3 != 0 for b in range(12)]).nonzero()[:, 0]
    second = trainer(tokenizer, job(steps=1), tmp_path / "b", reward=vowels)
    whole = second.generate

    def fewer(*arguments: Any, **settings: Any) -> Rollout:
        return whole(*arguments, **settings).select(kept)

    second.generate = fewer
    run(second)
    for (name, mine), (_, theirs) in zip(
        first.models.policy_parameters(), second.models.policy_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_without_any_reward_the_step_says_so(tokenizer: Any, tmp_path: Path) -> None:
    def never(rollout: Rollout) -> Scores:
        return Scores(torch.full((len(rollout),), math.nan))

    with pytest.raises(
        RunError, match="the reward returned None, which is no reward, for 12 of 12 responses"
    ):
        run(trainer(tokenizer, job(steps=1), tmp_path, reward=never))


def test_a_response_left_alone_is_left_out_where_groups_are_compared() -> None:
    rollout = blank_rollout([3, 4, 5, 6])
    prompts = [rollout.prompts[i] for i in (0, 0, 1, 1)]
    rollout = Rollout(
        prompts,
        rollout.sequences,
        rollout.action_mask,
        rollout.logprobs,
        rollout.finish,
        rollout.texts,
        policy_versions=rollout.policy_versions,
    )
    scores = Scores(torch.tensor([1.0, 2.0, math.nan, 3.0]))
    for groups, kept in ((False, [1.0, 2.0, 3.0]), (True, [1.0, 2.0])):
        left, more, without = with_a_reward(rollout, scores, groups)
        assert more.total.tolist() == kept
        assert len(left) == len(kept)
        assert without == 1
    alone = Scores(torch.tensor([1.0, math.nan, math.nan, 3.0]))
    with pytest.raises(RunError, match="for 2 of 4 responses, and no prompt has two others"):
        with_a_reward(rollout, alone, groups=True)


@pytest.mark.parametrize("without", [(1,), (2,), (1, 2), (1, 3)])
def test_a_draw_without_any_reward_is_replaced_like_any_other_without_use(
    tokenizer: Any, tmp_path: Path, without: tuple[int, ...]
) -> None:
    """Draws whose number is in `without` have no reward at all; the others have their vowels."""
    calls = []

    def sometimes(rollout: Rollout) -> Scores:
        calls.append(len(rollout))
        if len(calls) in without:
            return Scores(torch.full((len(rollout),), math.nan))
        return vowels(rollout)

    config = job(steps=1, samples_per_prompt=3, batch_size=4, filter_groups=True, filter_rounds=4)
    row = run(trainer(tokenizer, config, tmp_path, reward=sometimes))[0]
    used = [number for number in without if number <= len(calls)]
    assert row["filter/draws"] == len(calls)
    assert row["filter/drawn_prompts"] == 4 * len(calls)
    assert row.get("reward_none", 0.0) == 12.0 * len(used)
    assert 1 <= row["filter/kept_prompts"] <= 4
    assert math.isfinite(row["policy_loss"])


@pytest.mark.parametrize("rewards", ["none", "all the same"])
def test_where_no_draw_is_of_use_the_last_one_with_rewards_is_used(
    tokenizer: Any, tmp_path: Path, rewards: str
) -> None:
    calls = []

    def never(rollout: Rollout) -> Scores:
        calls.append(1)
        same = rewards == "all the same" and len(calls) == 1
        return Scores(torch.full((len(rollout),), 2.0 if same else math.nan))

    config = job(steps=1, samples_per_prompt=3, batch_size=4, filter_groups=True, filter_rounds=3)
    made = trainer(tokenizer, config, tmp_path, reward=never)
    if rewards == "none":
        with pytest.raises(RunError, match=r"the reward returned None, .* for 12 of 12 responses"):
            run(made)
    else:
        row = run(made)[0]
        assert (row["reward"], row["reward_none"], row["filter/kept_prompts"]) == (2.0, 24.0, 0.0)
    assert len(calls) == 3
