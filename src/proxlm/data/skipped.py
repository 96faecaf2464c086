"""Records left out of the data: counted by reason, and listed in a file in the run's folder."""

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
from proxlm.errors import LONGEST_LINE, BadRecordError, RunError
from proxlm.masking import masked_tree
from proxlm.text import short_line, system_reason

FILE_NAME = "skipped.jsonl"
LONGEST_SHOWN = 1000
_COPIED_AT_ONCE = 2**20


@dataclass(frozen=True)
class Record:
    """One record of a data file.

    Attributes:
        fields: The record.
        line: The line of `file`, from 1, on which it begins; in tables the row.
        file: The file or data set.
    """

    fields: dict[str, Any]
    line: int
    file: str = field(default="", compare=False)

    @property
    def where(self) -> str:
        """file:line, the beginning of every message about the record."""
        return f"{self.file}:{self.line}"


class Skipped:
    """Receives each bad record: raises its error or, with `skip`, leaves it out, counts it and keeps the details.

    The details are kept in a temporary file until `save` writes them to a run's folder as skipped.jsonl.

    Args:
        skip: Whether bad records are left out.

    Attributes:
        counts: The number of records left out, by kind; a record counts once however often its file is read.
        first: The error of the first bad record, or "".
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.counts: dict[str, int] = {}
        self.first = ""
        self._seen: set[tuple[str, int]] = set()
        self._rows: ScratchFile | None = None

    def bad(self, error: BadRecordError, file: str, line: int, raw: str) -> None:
        """Raise `error`, or leave the record out. raw: the record as it is in the file."""
        if not self.skip:
            raise error
        reason = str(error).removeprefix(f"{file}:{line}: ")
        self.first = self.first or str(error)
        self.note(file, line, error.kind, reason, raw)

    def first_in(self, source: object) -> str:
        """The first error, for a message that has named the file already: without the file's folder."""
        whole = str(source)
        if not self.first.startswith(f"{whole}:"):
            return self.first
        return Path(whole).name + self.first.removeprefix(whole)

    @contextmanager
    def judging(self, record: Record) -> Iterator[None]:
        """A context in which a BadRecordError marks the record as bad; with `skip` it ends the block silently."""
        try:
            yield
        except BadRecordError as error:
            self.bad(error, record.file, record.line, _as_text(record.fields))

    def leave_out(self, record: Record, kind: str, reason: str) -> None:
        """Leave out a record that is not bad, but that a setting or the job excludes."""
        self.note(record.file, record.line, kind, reason, _as_text(record.fields))

    def note(self, file: str, line: int, kind: str, reason: str, raw: str) -> None:
        """Count and keep one record that is left out, unless it has been counted before."""
        if (file, line) in self._seen:
            return
        self._seen.add((file, line))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        row = {"file": file, "line": line, "kind": kind, "reason": reason, "record": raw[:LONGEST_SHOWN]}
        text = json.dumps(masked_tree(row), ensure_ascii=False) + "\n"
        self._rows = self._rows or ScratchFile()
        self._rows.append(text.encode("utf-8", "backslashreplace"))

    def __len__(self) -> int:
        return len(self._seen)

    def summary(self) -> str:
        """ "7 left out, not valid JSON; 1 left out, empty"; "" if none was left out."""
        return "; ".join(f"{count} left out, {kind}" for kind, count in self.counts.items())

    def report(self) -> str:
        """How many records were left out, by reason, and the file that lists them; "" if none was."""
        return f"{self.summary()}: see {FILE_NAME}" if len(self) else ""

    def print_summary(self) -> None:
        """Print to standard error what was left out, and the first bad record; for jobs without a folder."""
        if len(self):
            first = f" (the first bad one: {self.first})" if self.first else ""
            print(short_line(f"{self.summary()}{first}", LONGEST_LINE), file=sys.stderr, flush=True)

    def save(self, folder: Path) -> None:
        """Write skipped.jsonl, completely or not at all; no file if no record was skipped. Raises RunError."""
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
            raise RunError(f"{path}: cannot be written: {system_reason(error)}") from error


def _as_text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, default=str)
