"""One response of several to a prompt: by majority of their answers (self-consistency), or by reward (best of n)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from proxlm.config import PickSettings
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.responses import Responses
from proxlm.evaluation.task_metrics.answers import reading
from proxlm.evaluation.task_metrics.task_metrics import TaskMetrics
from proxlm.rl.shaping import response_rewards
from proxlm.runlog import metric_names as names
from proxlm.types import Rollout, Scores

FAMILIES = {"majority": names.MAJORITY, "reward": names.BEST_BY_REWARD}


def majority(answers: Sequence[str | None]) -> int:
    """Which response has first the answer that most have (Wang et al. 2022); of a tie the answer that came first.

    Args:
        answers: Of each response; None: it has none, and no vote. If none has one, the first response is picked.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def best(rewards: Sequence[float]) -> int:
    """Which response has the highest reward, the first of equals; NaN, no reward, is the lowest."""
    return max(range(len(rewards)), key=lambda i: (-math.inf if math.isnan(rewards[i]) else rewards[i], -i))


Picker = Callable[[Rollout, int], list[tuple[int, dict[str, Any]]]]
"""Responses, so many to each prompt one after another → which row is picked of each, and why."""


def picker(settings: PickSettings, reward: Callable[[Rollout], Scores] | None) -> Picker:
    """How one of several responses is chosen where nothing else is measured.

    Args:
        settings: By what.
        reward: Of the responses, for `by = "reward"`.
    """
    metrics = settings.reading()
    read = reading(metrics, settings.labels)

    def answers(rollout: Rollout) -> list[str | None]:
        found = [read(text) for text in rollout.texts]
        return [a if a is None or not metrics.ignore_case else a.casefold() for a in found]

    def pick(rollout: Rollout, count: int) -> list[tuple[int, dict[str, Any]]]:
        starts = range(0, len(rollout.texts), count)
        if settings.by == "none":
            return [(start, {}) for start in starts]
        if settings.by == "majority":
            votes = answers(rollout)
            found = [start + majority(votes[start : start + count]) for start in starts]
            return [
                (
                    row,
                    {
                        "answer": votes[row],
                        "votes": sum(a == votes[row] for a in votes[start : start + count] if a is not None),
                        "of": count,
                    },
                )
                for row, start in zip(found, starts, strict=True)
            ]
        assert reward is not None
        scores = reward(rollout)
        offsets = rollout.sequences.response_offsets
        rewards = response_rewards(scores.total, scores.per_token, offsets).tolist()
        found = [start + best(rewards[start : start + count]) for start in starts]
        return [
            (row, {"reward": None if math.isnan(rewards[row]) else rewards[row], "of": count})
            for row in found
        ]

    return pick


def picked_metrics(way: str, sampled: Responses, metrics: TaskMetrics | None) -> dict[str, Estimate]:
    """The metrics of the picked responses, with the tokens that all of a prompt's responses cost.

    Args:
        way: "majority" or "reward".
        sampled: All responses, with answers or with rewards.
        metrics: Of the responses beside their reward; None: there are none.
    """
    of_prompt = dict[int, list[int]]()
    for row, prompt in enumerate(sampled.rollout.prompts):
        of_prompt.setdefault(prompt.id, []).append(row)
    if way == "majority":
        fold = metrics is not None and metrics.metrics.ignore_case
        votes = [a.read if a.read is None or not fold else a.read.casefold() for a in sampled.answers]
        chosen = [rows[majority([votes[row] for row in rows])] for rows in of_prompt.values()]
    else:
        chosen = [rows[best([sampled.rewards[row] for row in rows])] for rows in of_prompt.values()]
    written = [sum(sampled.lengths[row] for row in rows) for rows in of_prompt.values()]
    picked = sampled.select(torch.tensor(chosen), metrics)
    found = picked.reward_metrics() | picked.task_metrics() | picked.response_metrics()
    found[names.TOKENS_WRITTEN] = picked.over_prompts(written)
    return {FAMILIES[way](key): estimate for key, estimate in found.items()}
