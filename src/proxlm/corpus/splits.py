"""Parts of a corpus for training, validation and test, in which what belongs together is never apart."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from proxlm.config.corpus_steps import SplitSettings
from proxlm.corpus.duplicates import first_of_equal, groups_of, minhasher, text_key
from proxlm.corpus.step import Numbers, Rows, Verdict
from proxlm.corpus.texts import names_of, texts_of
from proxlm.data.documents import drawn_parts
from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError, DataError
from proxlm.seeds import Purpose, derive_seed
from proxlm.text import shown

Parts = npt.NDArray[np.uint8]
TRAIN, VALIDATION, TEST = "train", "validation", "test"
_NUMBER = "<f8"


class Split:
    """The last step: which part each record belongs to.

    Args:
        settings: The section [split].
        seed: Draws the parts.
    """

    def __init__(self, settings: SplitSettings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self.parts = part_names(settings)
        self._row, self.width = self._reader()

    def row(self, record: Record) -> bytes:
        return self._row(record)

    def decide(self, rows: Rows) -> Verdict:
        """The part of each record. Raises DataError if a part would be empty."""
        count, settings = len(rows), self._settings
        if settings.by == "time":
            part = parts_by_time(rows.view(_NUMBER).reshape(-1), settings.validation, settings.test)
            groups = count
        else:
            first = self._groups(rows)
            groups = int((first == np.arange(count)).sum())
            part = self._drawn(first)
        sizes = {name: int((part == i).sum()) for i, name in enumerate(self.parts)}
        for name, size in sizes.items():
            if not size:
                raise DataError(
                    f"split: {name} would be empty: {count} records in {groups} groups that stay together; give more"
                    " records, other shares or another split.by"
                )
        facts = {"records": sizes, "groups": groups, "by": settings.by}
        return Verdict(np.arange(count, dtype=np.int64), part, facts=facts)

    def _reader(self) -> tuple[Callable[[Record], bytes], int]:
        settings = self._settings
        if settings.by == "near":
            signature = minhasher(settings.permutations, settings.ngram, self._seed)
            return lambda record: signature(self._text(record)).tobytes(), 4 * settings.permutations
        if settings.by == "exact":
            return lambda record: text_key(self._text(record), "spaces"), 8
        if settings.by == "field":
            return lambda record: text_key(json.dumps(self._value(record), sort_keys=True, default=str)), 8
        if settings.by == "time":
            return lambda record: np.array([self._time(record)], _NUMBER).tobytes(), 8
        return lambda _: b"\0", 1

    def _text(self, record: Record) -> str:
        return "\n".join(texts_of(record, names_of(record, self._settings.fields)))

    def _value(self, record: Record) -> object:
        value = field_at(record.fields, self._settings.field)
        if value is None:
            raise missing_field(record, self._settings.field, "split.field")
        return value

    def _time(self, record: Record) -> float:
        value = self._value(record)
        time = seconds_of(value)
        if time is None:
            raise BadRecordError(
                f'{record.where}: field "{shown(self._settings.field)}" is no time: {shown(str(value), 40)}; write a'
                " number or ISO 8601, 2024-05-01T12:00:00 for instance",
                "no time",
            )
        return time

    def _groups(self, rows: Rows) -> Numbers:
        if self._settings.by == "near":
            return groups_of(rows, self._settings.threshold)
        if self._settings.by == "record":
            return np.arange(len(rows), dtype=np.int64)
        return first_of_equal(rows)

    def _drawn(self, first: Numbers) -> Parts:
        if self._settings.folds:
            return parts_by_fold(first, self._settings.folds, self._seed)
        return parts_by_share(first, self._settings.validation, self._settings.test, self._seed)


def part_names(settings: SplitSettings) -> tuple[str, ...]:
    """What the parts are called; each is a file."""
    if settings.folds:
        return tuple(f"part-{i + 1}" for i in range(settings.folds))
    shares = {VALIDATION: settings.validation, TEST: settings.test}
    return (TRAIN, *(name for name, share in shares.items() if share))


def seconds_of(value: object) -> float | None:
    """A time as a number: itself, or the seconds of an ISO 8601 text (UTC where it names no zone); None: no time."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        time = float(value)
    except (ValueError, OverflowError):
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            return None
        time = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return time if math.isfinite(time) else None


def parts_by_share(first: Numbers, validation: float, test: float, seed: int) -> Parts:
    """Groups are dealt in a random order: to validation and test where they still fit, the others to training.

    Args:
        first: For each record the first of its group.
        validation: Share of the records.
        test: Share of the records.
        seed: Draws the order.
    """
    heads, sizes = np.unique(first, return_counts=True)
    order = np.arange(len(heads))
    random.Random(derive_seed(seed, Purpose.SPLIT)).shuffle(order)  # type: ignore[arg-type]
    shares = [share for share in (validation, test) if share]
    left = [max(1, round(share * len(first))) for share in shares]
    part_of_group = np.zeros(len(heads), np.uint8)
    for group in order.tolist():
        for i, room in enumerate(left):
            if sizes[group] <= room:
                part_of_group[group], left[i] = i + 1, room - int(sizes[group])
                break
    return part_of_group[np.searchsorted(heads, first)]


def parts_by_fold(first: Numbers, k: int, seed: int) -> Parts:
    """k parts of nearly as many groups, drawn as `proxlm folds` draws its own."""
    heads = np.unique(first)
    if len(heads) < k:
        raise DataError(f"split.folds = {k}: there are only {len(heads)} groups of records; lower it")
    drawn = np.array(drawn_parts(len(heads), k, seed), np.uint8)
    return drawn[np.searchsorted(heads, first)]


def parts_by_time(times: npt.NDArray[np.float64], validation: float, test: float) -> Parts:
    """The newest records are the test, those before them the validation; records of the same time stay together."""
    newest_first = np.sort(times)[::-1]
    part, shares = np.zeros(len(times), np.uint8), [share for share in (validation, test) if share]
    held_out = 0.0
    for number in range(len(shares), 0, -1):
        held_out += shares[number - 1]
        count = min(len(times), max(1, round(held_out * len(times))))
        # From the oldest time of which all records fit; at least the newest one.
        border = newest_first[count - 1]
        if count < len(times) and newest_first[count] == border and border != newest_first[0]:
            border = newest_first[:count][newest_first[:count] > border].min()
        part[(times >= border) & (part == 0)] = number
    return part
