"""Which responses of a PPO step have numbers that are not finite."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from proxlm.rl.shaping import response_rewards
from proxlm.runlog.folder import JsonRow, plain
from proxlm.types import Experience, Rollout, Scores


def offending_rows(step: int, rollout: Rollout, experience: Experience, scores: Scores) -> list[JsonRow]:
    """The responses whose own numbers are not finite, or all of a step if each one's are finite."""
    offsets = rollout.sequences.response_offsets.tolist()
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets).tolist()
    rows = []
    for b in range(len(rollout)):
        span = slice(offsets[b], offsets[b + 1])
        wrong = [name for name, t in _tensors(experience) if not bool(t[span].isfinite().all())]
        wrong += [] if math.isfinite(rewards[b]) else ["reward"]
        rows.append(
            {
                "step": step,
                "prompt_id": rollout.prompts[b].id,
                "not_finite": wrong,
                "reward": rewards[b],
                "prompt": rollout.prompts[b].text,
                "response": rollout.texts[b],
            }
        )
    # Whitening spreads one number that is not finite over the whole batch, which says nothing about the others.
    own = [row for row in rows if set(row["not_finite"]) - {"advantages"}]
    return [plain(row) for row in own or rows]


def _tensors(experience: Experience) -> list[tuple[str, Any]]:
    found = [(f.name, getattr(experience, f.name)) for f in fields(experience)]
    return [(name, t) for name, t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]
