"""What is left out of the data: told record by record, counted by reason, and written to the run's folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxlm.data.scratch import ScratchFile
from proxlm.errors import BadRecordError, RunError

FILE_NAME = "skipped.jsonl"
LONGEST_SHOWN = 1000
_COPIED_AT_ONCE = 2**20


@dataclass(frozen=True)
class Record:
    """One record of a data file, and the line (from 1; in tables: the row) of `file` on which it begins."""

    fields: dict[str, Any]
    line: int
    file: str = field(default="", compare=False)

    @property
    def where(self) -> str:
        """file:line, which every message about the record begins with."""
        return f"{self.file}:{self.line}"


class Skipped:
    """Takes each bad record: raises its error or, with `skip`, leaves it out, counts it and keeps the details.

    counts: records left out, by kind, each once however often its file is read. The details wait in a scratch
    file without a name until `save` puts them in a run's folder as skipped.jsonl.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.counts: dict[str, int] = {}
        self.first = ""
        self._seen: set[tuple[str, int]] = set()
        self._rows: ScratchFile | None = None

    def bad(self, error: BadRecordError, file: str, line: int, raw: str) -> None:
        """Raise `error`, or leave the record out. raw: the record as it stands in the file."""
        if not self.skip:
            raise error
        reason = str(error).removeprefix(f"{file}:{line}: ")
        self.first = self.first or str(error)
        self.note(file, line, error.kind, reason, raw)

    @contextmanager
    def judging(self, record: Record) -> Iterator[None]:
        """Where the block raises BadRecordError, the record is bad, and with `skip` the block ends quietly."""
        try:
            yield
        except BadRecordError as error:
            self.bad(error, record.file, record.line, _as_text(record.fields))

    def leave_out(self, record: Record, kind: str, reason: str) -> None:
        """Leave out a record that is not bad: what a setting or the job itself has no use for."""
        self.note(record.file, record.line, kind, reason, _as_text(record.fields))

    def note(self, file: str, line: int, kind: str, reason: str, raw: str) -> None:
        """Count and keep one record that is left out, unless it has been."""
        if (file, line) in self._seen:
            return
        self._seen.add((file, line))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        row = {"file": file, "line": line, "kind": kind, "reason": reason, "record": raw[:LONGEST_SHOWN]}
        text = json.dumps(row, ensure_ascii=False) + "\n"
        self._rows = self._rows or ScratchFile()
        self._rows.append(text.encode("utf-8", "backslashreplace"))

    def __len__(self) -> int:
        return len(self._seen)

    def summary(self) -> str:
        """ "7 left out, not valid JSON; 1 left out, empty"; nothing where nothing was."""
        return "; ".join(f"{count} left out, {kind}" for kind, count in self.counts.items())

    def tell(self) -> None:
        """Say on standard error what was left out, and the first bad record; for jobs without a folder."""
        if len(self):
            first = f" (the first bad one: {self.first})" if self.first else ""
            print(f"{self.summary()}{first}", file=sys.stderr, flush=True)

    def save(self, folder: Path) -> None:
        """Write skipped.jsonl, whole or not at all; where nothing was left out there is none. Raises RunError."""
        path = folder / FILE_NAME
        beside = path.with_name(f".writing-{path.name}-{os.getpid()}")
        try:
            if self._rows is None:
                path.unlink(missing_ok=True)
                return
            with open(beside, "wb") as file:
                for start in range(0, self._rows.size, _COPIED_AT_ONCE):
                    file.write(self._rows.read(start, min(start + _COPIED_AT_ONCE, self._rows.size)))
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def _as_text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, default=str)
