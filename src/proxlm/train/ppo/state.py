"""What a PPO run carries from step to step, and how it stands in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxlm.checkpoint import list_of_numbers, numbers_of
from proxlm.rl.running_statistics import RunningStatistics


@dataclass
class PPOState:
    """All that a run carries from one step to the next, besides weights and optimisers.

    draws: batches of prompts taken (more than steps where prompts are filtered); moments: of the scores that
    shaping.scale works with; ptx_batches: batches of text used; skipped: steps in a row without an update;
    pass_tokens: the most tokens in a pass, if memory asked for less than the setting, else 0.
    """

    step: int
    kl_coef: float
    draws: int = 0
    moments: RunningStatistics = RunningStatistics()  # noqa: RUF009 (immutable)
    ptx_batches: int = 0
    skipped: int = 0
    pass_tokens: int = 0


def state_from(checkpoint: Path, saved: Mapping[str, Any]) -> PPOState:
    """The state in a checkpoint. Raises RunError for a number that is not there."""
    counts = numbers_of(
        checkpoint, saved, dict.fromkeys(("step", "draws", "ptx_batches", "skipped", "pass_tokens"), int)
    )
    return PPOState(
        **counts,
        **numbers_of(checkpoint, saved, {"kl_coef": float}),
        moments=RunningStatistics(*list_of_numbers(checkpoint, saved, "moments", 3)),
    )
