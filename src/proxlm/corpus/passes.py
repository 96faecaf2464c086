"""The passes over a corpus: one from each step that looks at all records to the next.

A pass reads records one at a time, gives them to the steps in turn, and writes what stays to a file. Before a step
of the whole corpus it also writes a few bytes of each record; the step decides by them, and the next pass leaves out
what it names. So memory is one record, and what the step itself needs. Every so many MiB the files are brought to
the disk and the state is written beside them: a job that was ended goes on from there, and its files are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from proxlm.config.corpus import STEPS, CorpusConfig
from proxlm.corpus.languages import language_of
from proxlm.corpus.sources import Source, read_source
from proxlm.corpus.state import State
from proxlm.corpus.step import CorpusStep, RecordStep, Verdict
from proxlm.corpus.steps import EMPTY, NamedStep, build_steps, first_fields
from proxlm.corpus.tally import Tally
from proxlm.corpus.texts import names_of, texts_of
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError, RunError
from proxlm.text import listed, reason_of, system_reason

STATE = "state.json"
DATA = "data"
_MIB = 2**20
_BUFFER = 2**20
# Whose language the data card looks at, without a step language: the first ones, then each so many-th.
_FIRST, _EACH = 100, 1000

Report = Callable[[int, int, float, int], None]
"""Called with the pass, how many there are, the share of it that is done, and the records that it has read."""


@dataclass(frozen=True)
class _Pass:
    """Steps of single records, perhaps after the verdict of a step of the whole corpus, perhaps before another."""

    opening: int | None  # numbers of steps
    steps: range
    closing: int | None


class Passes:
    """The work of one job in a folder of its own.

    Args:
        config: The job's settings.
        sources: What is read.
        folder: Where files are while it works.
        report: Told how far it is.

    Attributes:
        state: How far it is, with all that was counted.
        skipped: What could not be read.
    """

    def __init__(self, config: CorpusConfig, sources: Sequence[Source], folder: Path, report: Report) -> None:
        self._config, self._sources, self._folder, self._report = config, sources, folder, report
        self._steps = build_steps(config)
        self._passes = _planned(self._steps)
        self.skipped = Skipped(config.on_bad_record == "skip")
        if (folder / STATE).exists():
            self.state = State.load(folder / STATE)
        else:
            self.state = State(tallies=[Tally("read"), *(Tally(step.name) for step in self._steps)])
        self._language: Callable[[str], tuple[str, float]] | None = None

    @property
    def finished(self) -> bool:
        """Whether every pass is done."""
        return self.state.number == len(self._passes)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are written."""
        last = self._steps[-1].step
        return getattr(last, "parts", ()) or (DATA,)

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            DataError: The data cannot be read, or nothing is left of it.
            RunError: A file cannot be written.
        """
        try:
            while not self.finished:
                self._run_pass(self._passes[self.state.number])
        except OSError as error:
            raise RunError(f"{self._folder}: cannot be written: {system_reason(error)}") from error

    def _run_pass(self, plan: _Pass) -> None:
        state, last = self.state, self.state.number == len(self._passes) - 1
        verdict = self._verdict(plan)
        names = [f"{part}.jsonl" for part in self.parts] if last else [_records_file(state.number)]
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(self._opened(name)) for name in [*names, _rows_file(state.number)]
            }
            output = _Output(files, names, _rows_file(state.number), last)
            unsaved = 0
            for record in self._records():
                number = state.read
                state.read += 1
                unsaved += self._one(record, number, plan, verdict, output)
                if unsaved >= self._config.save_every * _MIB:
                    self._save(files)
                    unsaved = 0
            self._end_pass(files)

    def _one(self, record: Record, number: int, plan: _Pass, verdict: Verdict | None, output: _Output) -> int:
        """Take one record through a pass; returns the characters of its texts."""
        try:
            texts: Sequence[str] = texts_of(record, names_of(record, self._fields_before(plan)))
        except BadRecordError as error:
            tally = self.state.tallies[0 if plan.opening is None else plan.opening + 1]
            tally.add_in([])
            self._bad(error, tally, record, [])
            return 0
        size = sum(map(len, texts))
        if verdict is None:
            if not self._is_read(record, texts):
                return size
        elif not self._stays(record, number, texts, plan, verdict):
            return size
        for i in plan.steps:
            found = self._step(i, record, texts)
            if found is None:
                return size
            record, texts = found
        row = self._row(plan, record, texts)
        if row is None:
            return size
        part = int(verdict.part[number]) if verdict is not None and verdict.part is not None else 0
        output.write(part, record, row)
        self.state.kept += 1
        if output.last:
            self._look_at(texts)
        return size

    def _fields_before(self, plan: _Pass) -> Sequence[str]:
        if plan.opening is None:
            return first_fields(self._config)
        return self._steps[plan.opening].fields_in

    def _is_read(self, record: Record, texts: Sequence[str]) -> bool:
        """Count a record that was read; False: it is blank and left out."""
        tally, most = self.state.tallies[0], self._config.examples
        self.state.before.add(texts)
        tally.add_in(texts)
        if not any(text.strip() for text in texts):
            tally.remove(EMPTY, "blank", record.where, lambda: "", most)
            return False
        tally.keep(record.where, texts, texts, False, most)
        return True

    def _stays(
        self, record: Record, number: int, texts: Sequence[str], plan: _Pass, verdict: Verdict
    ) -> bool:
        """Count a record of which a step of the whole corpus has decided."""
        assert plan.opening is not None
        state, most = self.state, self._config.examples
        tally = state.tallies[plan.opening + 1]
        tally.add_in(texts)
        like = int(verdict.like[number])
        if number in self._wanted:
            state.stands_for[str(number)] = "\n".join(texts)[:_MIB]
        if like == number:
            tally.keep(record.where, texts, texts, False, most)
            return True
        tally.remove(
            verdict.removed,
            verdict.detail(number),
            record.where,
            lambda: "\n".join(texts),
            most,
            lambda: state.stands_for.get(str(like), ""),
        )
        return False

    def _step(self, i: int, record: Record, texts: Sequence[str]) -> tuple[Record, Sequence[str]] | None:
        """The record and its texts after a step of single records; None: it is left out."""
        named, tally, most = self._steps[i], self.state.tallies[i + 1], self._config.examples
        step = cast("RecordStep", named.step)
        tally.add_in(texts)
        try:
            outcome = step(record)
            if outcome.removed or outcome.fields is record.fields:
                made, after = record, texts
            else:
                made = Record(outcome.fields, record.line, record.file)
                after = texts_of(made, names_of(made, named.fields_out))
        except BadRecordError as error:
            self._bad(error, tally, record, texts)
            return None
        tally.label(outcome.labels)
        if outcome.removed:
            tally.remove(outcome.removed, outcome.detail, record.where, lambda: "\n".join(texts), most)
            return None
        changed = made is not record and made.fields != record.fields
        shown = None
        if changed and texts == after:  # another field or another shape
            shown = (json.dumps(record.fields, default=str), json.dumps(made.fields, default=str))
        tally.keep(record.where, texts, after, changed, most, shown)
        return made, after

    def _row(self, plan: _Pass, record: Record, texts: Sequence[str]) -> bytes | None:
        """The bytes by which the step that closes a pass decides; None: the record is left out."""
        if plan.closing is None:
            return b""
        try:
            return cast("CorpusStep", self._steps[plan.closing].step).row(record)
        except BadRecordError as error:
            tally = self.state.tallies[plan.closing + 1]
            tally.add_in(texts)
            self._bad(error, tally, record, texts)
            return None

    def _bad(self, error: BadRecordError, tally: Tally, record: Record, texts: Sequence[str]) -> None:
        if not self.skipped.skip:
            raise error
        tally.remove(error.kind, str(error), record.where, lambda: "\n".join(texts), self._config.examples)

    def _look_at(self, texts: Sequence[str]) -> None:
        """Count the length of a record that is written and, of a sample, the language."""
        state = self.state
        state.after.add(texts)
        sampled = state.kept <= _FIRST or state.kept % _EACH == 0
        if sampled and "language" not in self._config.steps and find_spec(STEPS["language"]) is not None:
            self._language = self._language or language_of()
            name, _ = self._language("\n".join(texts))
            state.languages[name] = state.languages.get(name, 0) + 1

    def _records(self) -> Iterator[Record]:
        """What the pass reads, from where it is."""
        state = self.state
        if state.number == 0:
            yield from self._read_sources()
            return
        path = self._folder / _records_file(state.number - 1)
        total = max(1, path.stat().st_size)
        with open(path, "rb") as file:
            file.seek(state.offset)
            for line in file:
                state.offset += len(line)
                self._tell(state.offset / total)
                name, number, fields = json.loads(line)
                yield Record(fields, number, name)

    def _read_sources(self) -> Iterator[Record]:
        behind, done = self.state.read, 0
        total = max(1, sum(source.size for source in self._sources))
        for source in self._sources:
            begun = 0
            for record in read_source(source.name, self._config.documents, self.skipped):
                begun += _size_of(record.fields)
                if behind:
                    behind -= 1
                    continue
                self._tell(min(done + begun, done + source.size) / total)
                yield record
            done += source.size

    def _tell(self, share: float) -> None:
        self._report(self.state.number, len(self._passes), share, self.state.read)

    def _verdict(self, plan: _Pass) -> Verdict | None:
        """What the step that opens a pass decides, by what the pass before has written."""
        self._wanted: frozenset[int] = frozenset()
        if plan.opening is None:
            return None
        step = cast("CorpusStep", self._steps[plan.opening].step)
        path = self._folder / _rows_file(self.state.number - 1)
        rows = np.memmap(path, np.uint8, "r").reshape(-1, step.width)
        verdict = step.decide(rows)
        self.state.tallies[plan.opening + 1].facts = verdict.facts
        out = np.flatnonzero(verdict.like != np.arange(len(verdict.like)))[: self._config.examples]
        self._wanted = frozenset(verdict.like[out].tolist())
        return verdict

    def _opened(self, name: str) -> BinaryIO:
        """A file of this pass, as it was when the state was written."""
        path = self._folder / name
        file = open(path, "r+b" if path.exists() else "w+b", _BUFFER)  # noqa: SIM115  # closed by the caller
        file.truncate(self.state.sizes.get(name, 0))
        file.seek(0, os.SEEK_END)
        return file

    def _save(self, files: Mapping[str, BinaryIO]) -> None:
        for name, file in files.items():
            file.flush()
            os.fsync(file.fileno())
            self.state.sizes[name] = file.tell()
        self.state.save(self._folder / STATE)

    def _end_pass(self, files: Mapping[str, BinaryIO]) -> None:
        state = self.state
        if state.number == 0:
            tally = state.tallies[0]
            for kind, count in self.skipped.counts.items():
                tally.removed[kind] = tally.removed.get(kind, 0) + count
                tally.records_in += count
            self.skipped.save(self._folder)
        if not state.kept:
            read = listed(source.name for source in self._sources)
            why = listed(_reasons(state.tallies), "there was none", 5)
            raise DataError(f"{read}: no record is left; left out: {why}")
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        before = state.number - 1
        state.begin_next()
        state.save(self._folder / STATE)
        for name in (_records_file(before), _rows_file(before)):
            (self._folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Output:
    """The files of a pass: those of the records, by part, and that of the rows."""

    files: Mapping[str, BinaryIO]
    names: Sequence[str]
    rows: str
    last: bool

    def write(self, part: int, record: Record, row: bytes) -> None:
        value: Any = record.fields if self.last else [record.file, record.line, record.fields]
        try:
            line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"{record.where}: the record cannot be written as JSON: {reason_of(error)}; convert the data first"
            ) from error
        self.files[self.names[part]].write(line + b"\n")
        self.files[self.rows].write(row)


def _planned(steps: Sequence[NamedStep]) -> list[_Pass]:
    """The passes: each ends before a step of the whole corpus decides."""
    passes: list[_Pass] = []
    opening, begin = None, 0
    for i, named in enumerate(steps):
        if hasattr(named.step, "decide"):
            passes.append(_Pass(opening, range(begin, i), i))
            opening, begin = i, i + 1
    return [*passes, _Pass(opening, range(begin, len(steps)), None)]


def _records_file(number: int) -> str:
    return f"pass-{number}.jsonl"


def _rows_file(number: int) -> str:
    return f"pass-{number}.rows"


def _size_of(value: Any) -> int:
    """About the bytes of a record in its file, for the time left."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(len(name) + 6 + _size_of(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_size_of, value))
    return 4


def _reasons(tallies: Sequence[Tally]) -> list[str]:
    return [f"{tally.step}: {count} {reason}" for tally in tallies for reason, count in tally.removed.items()]
