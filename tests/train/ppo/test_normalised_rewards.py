"""Rewards normalised one by one, from the settings to the scores that are learned from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import blank_rollout

from proxlm.config import RewardSettings, ShapingSettings
from proxlm.errors import ConfigError
from proxlm.rewards import build_reward
from proxlm.rl.running_statistics import RunningStatistics
from proxlm.train.ppo.score_shaping import shape_scores
from proxlm.types import Scores

ROLLOUT = replace(
    blank_rollout([3, 3, 3, 3]),
    prompts=[replace(p, id=i // 2) for i, p in enumerate(blank_rollout([3] * 4).prompts)],
)
SCORES = Scores(
    torch.tensor([1.0, 3.0, 0.0, 50.0]),
    components={"a": [1.0, 3.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0, 50.0], "unused": [9.0] * 4},
    weights={"a": 1.0, "b": 2.0},
)


def shaped(by, scores=SCORES):
    found = shape_scores(
        ROLLOUT, scores, ShapingSettings(normalise=by), RunningStatistics(), 12, 1.0, bootstrap=False
    )
    return found.total


@pytest.mark.checklist(28)
def test_in_groups_and_in_the_batch():
    half = 0.5**0.5
    assert shaped("group").tolist() == pytest.approx([-half, half, -2 * half, 2 * half], abs=1e-5)
    a, b = torch.tensor([1.0, 3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 50.0])
    wanted = (a - 1) / a.std() + 2 * (b - 12.5) / b.std()
    assert torch.allclose(shaped("batch"), wanted, atol=1e-5)
    assert torch.equal(shaped("none"), SCORES.total)


@pytest.mark.checklist(28)
def test_parts_keep_the_weights():
    offsets = ROLLOUT.sequences.response_offsets
    parts = [SCORES.select(torch.tensor(rows), offsets) for rows in ([0, 1], [2, 3])]
    joined = Scores.join(parts, [4, 4])
    assert joined.weights == SCORES.weights
    assert torch.equal(shaped("group", joined), shaped("group"))


@pytest.mark.checklist(28)
def test_a_reward_of_several_functions_has_weights_and_a_single_one_has_none():
    def both(completions):
        lengths = [len(c.tokens) for c in completions]
        return {"good": [float(n) for n in lengths], "steps": [[1.0] * n for n in lengths]}

    many = build_reward(RewardSettings(weights={"good": 0.5, "steps": 3.0}), both)
    assert many.score(ROLLOUT.completions()).weights == {"good": 0.5}

    def good(completions):
        return [1.0] * len(completions)

    single = build_reward(RewardSettings(), good).score(ROLLOUT.completions())
    with pytest.raises(ConfigError, match="no components"):
        shaped("group", single)
