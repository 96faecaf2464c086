"""The rows that a run appends to its folder: metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from proxlm.errors import RunError
from proxlm.runlog.folder import (
    JsonRow,
    append_jsonl,
    jsonl_lines,
    read_jsonl,
    sync_file,
    sync_folder,
    truncate_jsonl,
)
from proxlm.runlog.metric_names import STEP

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class RowCounts(NamedTuple):
    """How many rows each of the two files holds."""

    metrics: int
    samples: int


def count_rows(folder: Path, last: int) -> RowCounts:
    """The rows in a run's folder up to step `last`; a file that is not there has none.

    Raises:
        RunError: Names the file and the line that is malformed, or whose step does not follow the one before.
    """
    metrics = sum(step <= last for step in steps_of(folder / METRICS, several=False))
    return RowCounts(metrics, sum(step <= last for step in steps_of(folder / SAMPLES, several=True)))


def rows_sha256(path: Path, count: int) -> str:
    """SHA-256 of the first `count` rows of one of the files, as they are written; of a missing file, of no rows."""
    digest = hashlib.sha256()
    for text, _ in islice(jsonl_lines(path) if path.exists() else (), count):
        digest.update(f"{text}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def steps_of(path: Path, several: bool) -> Iterator[int]:
    """The step of each row of one of the files.

    Args:
        path: The file; if it is not there, it has no rows.
        several: Whether there may be several rows of one step.

    Raises:
        RunError: As `count_rows`.
    """
    before = 0
    for number, (_, row) in enumerate(jsonl_lines(path) if path.exists() else (), start=1):
        step = row.get(STEP)
        if not isinstance(step, int) or isinstance(step, bool):
            raise RunError(f"{path}: line {number}: no number at {STEP!r}")
        if step < before or (step == before and not several) or step < 1:
            raise RunError(
                f"{path}: line {number}: step {step} after step {before}: rows were added twice or moved"
            )
        yield step
        before = step


# Larger numbers are refused: a sum or a square of them would be no number.
LARGEST_NUMBER = 1e300


class RowFiles:
    """The two files. Rows of steps after `start_step` are dropped when a run is resumed.

    Args:
        folder: the run's folder.
        start_step: the step of the checkpoint that the run is resumed from; 0: a new run.

    Raises:
        RunError: a file cannot be read or written, or a new run's folder already holds rows.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self._metrics, self._samples = folder / METRICS, folder / SAMPLES
        self._counts = {self._metrics: 0, self._samples: 0}
        self._digests = {file: hashlib.sha256() for file in self._counts}
        self._new = True  # whether a power cut could lose the files' names
        for file in self._counts:
            if start_step:
                self._counts[file] = truncate_jsonl(file, STEP, start_step)
                if file.exists():
                    self._digests[file].update(file.read_bytes())
            elif file.exists():
                # Appending would mix two runs, and emptying the file would lose one.
                raise RunError(f"{file}: already holds a run's rows; choose another run.folder")

    @property
    def counts(self) -> RowCounts:
        """How many rows the files hold."""
        return RowCounts(*self._counts.values())

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the rows of each file, by the names of `counts`."""
        return {
            name: digest.hexdigest()
            for name, digest in zip(RowCounts._fields, self._digests.values(), strict=True)
        }

    def read_metrics(self) -> list[JsonRow]:
        """The rows of metrics.jsonl so far."""
        return read_jsonl(self._metrics) if self._metrics.exists() else []

    def add_metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl; numbers that are not finite become null."""
        self._add(self._metrics, [{STEP: step, **row}])

    def add_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl; nothing if there are none."""
        if rows:
            self._add(self._samples, [{STEP: step, **row} for row in rows])

    def _add(self, file: Path, rows: list[JsonRow]) -> None:
        self._digests[file].update(append_jsonl(file, rows))
        self._new = self._new or not self._counts[file]
        self._counts[file] += len(rows)

    def sync(self) -> None:
        """Bring both files to the disk, and their names in the folder."""
        for file in self._counts:
            sync_file(file)
        if self._new:
            sync_folder(self._metrics.parent)
            self._new = False
