"""What has changed in a run's folder or its inputs since a checkpoint was written: refused, or accepted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxlm.checkpoint.state import read_step
from proxlm.errors import RunError
from proxlm.runlog.rows import METRICS, SAMPLES, RowCounts, count_rows, rows_sha256
from proxlm.text import shown

# Where a state holds the hashes of the rows so far: of numbers that a clock gave as well.
ROWS_SHA256 = "timed_rows_sha256"
# How many changes an error names; the others are counted.
_NAMED = 2
_LONGEST_CHANGE = 90


def changed_rows(checkpoint: Path, saved: Mapping[str, Any]) -> list[str]:
    """Whether metrics.jsonl and samples.jsonl hold the rows that they held when the checkpoint was written.

    Args:
        checkpoint: Its folder, in checkpoints/ of the run's.
        saved: What its state.json holds; an older version's names no rows, which is no change.

    Returns:
        A line for each file that has lost or gained rows up to the checkpoint's step, or whose rows have changed, or
        for the first row that is malformed or out of order.

    Raises:
        RunError: The checkpoint's counts are none.
    """
    then = saved.get("row_counts")
    if then is None:
        return []
    names = RowCounts._fields
    if not isinstance(then, Mapping) or not all(_is_count(then.get(name)) for name in names):
        raise RunError(f"{checkpoint / 'state.json'}: no counts of {' and '.join(names)} at 'row_counts'")
    run = checkpoint.parent.parent
    try:
        now = count_rows(run, read_step(checkpoint, saved))
    except RunError as error:
        return [str(error).removeprefix(f"{run}{os.sep}")]
    lines = [
        f"{file} has {here} rows up to there, not {then[name]}: some were {'lost' if here < then[name] else 'added'}"
        for name, file, here in zip(names, (METRICS, SAMPLES), now, strict=True)
        if here != then[name]
    ]
    if lines:
        return lines
    digests = saved.get(ROWS_SHA256, {})
    if not isinstance(digests, Mapping):
        raise RunError(f"{checkpoint / 'state.json'}: no SHA-256 of the rows at {ROWS_SHA256!r}")
    return [
        f"{file}: a row is not what the run wrote (another SHA-256)"
        for name, file, count in zip(names, (METRICS, SAMPLES), now, strict=True)
        if name in digests and rows_sha256(run / file, count) != digests[name]
    ]


def accept_changes(checkpoint: Path, changes: Sequence[str], accepted: bool) -> None:
    """Print each change if changes are accepted (`run.accept_changes`). Raises RunError that names them if not."""
    if not changes:
        return
    if accepted:
        for change in changes:
            print(f"note: accepted: {change}", flush=True)
        return
    named = "; ".join(shown(change, _LONGEST_CHANGE) for change in changes[:_NAMED])
    more = f"; and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    raise RunError(
        f"{checkpoint.name}: {named}{more}; put it back, start a new run, or go on all the same:"
        " run.accept_changes = true"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
