"""The rows that a run appends to its folder: metrics.jsonl and samples.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxlm.errors import RunError
from proxlm.runlog.folder import JsonRow, append_jsonl, read_jsonl, sync_file, truncate_jsonl
from proxlm.runlog.metric_names import STEP


class RowFiles:
    """The two files. Rows of steps after `start_step` are dropped when a run is resumed.

    Args:
        folder: the run's folder.
        start_step: the step of the checkpoint that the run is resumed from; 0: a new run.

    Raises:
        RunError: a file cannot be read or written, or a new run's folder already holds rows.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self._metrics, self._samples = folder / "metrics.jsonl", folder / "samples.jsonl"
        for file in (self._metrics, self._samples):
            if start_step:
                truncate_jsonl(file, STEP, start_step)
            elif file.exists():
                # Appending would mix two runs, and emptying the file would lose one.
                raise RunError(f"{file}: already holds a run's rows; choose another run.folder")

    def read_metrics(self) -> list[JsonRow]:
        """The rows of metrics.jsonl so far."""
        return read_jsonl(self._metrics) if self._metrics.exists() else []

    def add_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl; numbers that are not finite become null."""
        append_jsonl(self._metrics, [{STEP: step, **row}])

    def add_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl; nothing if there are none."""
        if rows:
            append_jsonl(self._samples, [{STEP: step, **row} for row in rows])

    def sync(self) -> None:
        """Bring both files to the disk."""
        for file in (self._metrics, self._samples):
            sync_file(file)
