"""Updates that were skipped because a gradient was no finite number: counted, and a run that only skips is ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from proxlm.rl.shaping import response_rewards
from proxlm.runlog.folder import JsonRow, plain, write_jsonl_atomic
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.types import Experience, Rollout, Scores


def nothing_learnt(stats: Sequence[MinibatchStats]) -> bool:
    """Whether some optimiser had only gradients that are no finite numbers, so that all its steps were skipped."""
    names = {name for s in stats for name in s.grad_norm}
    return any(
        all(not math.isfinite(s.grad_norm[name]) for s in stats if name in s.grad_norm) for name in names
    )


def end_of_run(folder: Path, step: int, in_a_row: int, rows: Sequence[JsonRow], what: str) -> str:
    """Write the samples of the newest of the skipped steps into the run's folder; returns what to tell the user.

    what: how a sample is called in the message, with a field of the rows in braces: "prompt {prompt_id}". Raises
    RunError where the file cannot be written.
    """
    path = folder / f"skipped-step-{step:08d}.jsonl"
    write_jsonl_atomic(path, rows)
    named = ", ".join(what.format(**row) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    return (
        f"{folder}: no update in the last {in_a_row} steps: the gradients were no finite numbers; step {step} is"
        f" saved, and its samples ({named}) are in {path.name}; look at their rewards, or lower the learning rate"
    )


def offending_rows(step: int, rollout: Rollout, experience: Experience, scores: Scores) -> list[JsonRow]:
    """The responses whose own numbers are not finite, or all of a step where each one's are."""
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
    first = [row for row in rows if set(row["not_finite"]) - {"advantages"}]
    return [plain(row) for row in first or rows]


def _tensors(experience: Experience) -> list[tuple[str, Any]]:
    found = [(f.name, getattr(experience, f.name)) for f in fields(experience)]
    return [(name, t) for name, t in found if isinstance(t, torch.Tensor) and t.is_floating_point()]
