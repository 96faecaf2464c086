"""Responses with labels: scores, a class, or a label for each step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config import LabelSettings, PreferenceSettings
from proxlm.data.completions import group_of, number, read_completion, slice_of
from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.records import Source, iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError
from proxlm.text import listed, shown
from proxlm.types import Completion

Kind = Literal["scores", "classes", "steps"]
# More classes than that are numbers that were meant as scores.
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Labelled:
    """A response with its labels, as a reward would get it.

    Attributes:
        completion: Prompt and response.
        numbers: Its scores in the order of `labels.score_fields` (NaN: it has none); the number of its class; or a
            label for each step.
        slice: The value of `text.slice_field`; empty: there is none.
        where: file:line of its record.
    """

    completion: Completion
    numbers: tuple[float, ...]
    slice: str = ""
    where: str = ""

    @property
    def sides(self) -> tuple[Completion]:
        return (self.completion,)

    @property
    def group(self) -> str:
        return group_of(self.completion)


@dataclass(frozen=True)
class LabelFormat:
    """How labels are read.

    Attributes:
        kind: `objective.kind`.
        text: The section [text].
        labels: The section [labels].
        classes: The names of the classes, in the order of their numbers; empty for other kinds.
    """

    kind: Kind
    text: PreferenceSettings
    labels: LabelSettings
    classes: Sequence[str] = ()

    def read(self, record: Record) -> Labelled:
        """The labelled response that a record holds. Raises BadRecordError; the message names the field."""
        name = self.labels.steps_field if self.kind == "steps" else self.labels.response_field
        value = field_at(record.fields, name)
        if value is None:
            setting = "labels.steps_field" if self.kind == "steps" else "labels.response_field"
            raise missing_field(record, name, setting)
        if self.kind == "steps":
            value = _joined(record, name, value, self.labels.separator)
        prompt = field_at(record.fields, self.text.prompt_field)
        completion = read_completion(record, self.text, prompt, name, value)
        if self.kind == "scores":
            numbers = _scores(record, self.labels.score_fields)
        elif self.kind == "classes":
            numbers = (float(self._class_number(record)),)
        else:
            numbers = _step_labels(record, self.labels, completion.text)
        return Labelled(completion, numbers, slice_of(record, self.text), record.where)

    def _class_number(self, record: Record) -> int:
        found = class_name(record, self.labels.class_field)
        if found in self.classes:
            return self.classes.index(found)
        if found.isdecimal() and found.isascii() and int(found[:9]) < len(self.classes):
            return int(found)
        raise BadRecordError(
            f'{record.where}: field "{shown(self.labels.class_field)}" is {shown(repr(found), 40)}; the classes are'
            f" {listed([shown(name, 40) for name in self.classes])} (labels.classes)",
            "unknown class",
        )


def labelled(
    how: LabelFormat, sources: Sequence[Source], skipped: Skipped
) -> Iterator[tuple[Record, Labelled]]:
    """The records that hold a labelled response, and that.

    Raises:
        DataError: With file and line: a record holds none, and `skipped` does not take it.
    """
    for source in sources:
        for record in iter_records(source, skipped):
            found: Labelled | None = None
            with skipped.judging(record):
                found = how.read(record)
            if found is not None:
                yield record, found


def classes_in(field: str, sources: Sequence[Source], skipped: Skipped) -> list[str]:
    """The classes that stand in the field of some records: in the order of numbers if all are, else of letters.

    Raises:
        DataError: There are fewer than two, or so many that they are no classes.
    """
    found: set[str] = set()
    for source in sources:
        for record in iter_records(source, skipped):
            with skipped.judging(record):
                found.add(class_name(record, field))
            if len(found) > MOST_CLASSES:
                raise DataError(
                    f'{record.where}: field "{shown(field)}" has more than {MOST_CLASSES} values; for numbers set'
                    ' objective.kind = "scores"'
                )
    if len(found) < 2:
        raise DataError(
            f'labels.class_field = "{shown(field)}": {listed([shown(name, 40) for name in found])}; needs two classes'
        )
    return sorted(found, key=lambda name: (_as_number(name), name))


def _as_number(name: str) -> float:
    return float(name) if re.fullmatch(r"-?\d{1,15}", name) else math.inf


def class_name(record: Record, field: str) -> str:
    """The class that a record names: a text or a whole number. Raises BadRecordError."""
    value = field_at(record.fields, field)
    if value is None:
        raise missing_field(record, field, "labels.class_field")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str | int) and 0 < len(name := str(value).strip()) <= 200:
        return name
    raise BadRecordError(
        f'{record.where}: field "{shown(field)}" must be a class, a short text or a whole number, not'
        f" {shown(repr(value), 40)}",
        "no class",
    )


def _scores(record: Record, names: Sequence[str]) -> tuple[float, ...]:
    values = [field_at(record.fields, name) for name in names]
    if all(value is None for value in values):
        raise missing_field(record, names[0], "labels.score_fields")
    return tuple(
        math.nan if value is None else number(record, name, value)
        for name, value in zip(names, values, strict=True)
    )


def _joined(record: Record, name: str, value: Any, separator: str) -> str:
    """A response from its steps, which must be those that it is split into again."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(step, str) for step in value):
        raise BadRecordError(
            f'{record.where}: field "{shown(name)}" must hold steps: a list of texts, or a text', "no steps"
        )
    whole = separator.join(value)
    if len(step_ends(whole, separator)) != len(value):
        raise BadRecordError(
            f'{record.where}: field "{shown(name)}": a step is empty or holds {shown(repr(separator), 20)}, which'
            " stands between steps; set labels.separator to something else",
            "no steps",
        )
    return whole


def _step_labels(record: Record, labels: LabelSettings, response: str) -> tuple[float, ...]:
    name = labels.step_labels_field
    value, steps = field_at(record.fields, name), len(step_ends(response, labels.separator))
    if value is None:
        raise missing_field(record, name, "labels.step_labels_field")
    if not steps:
        raise BadRecordError(f'{record.where}: field "{shown(labels.steps_field)}" is empty', "empty")
    if not isinstance(value, list) or len(value) != steps:
        given = f"{len(value)} labels" if isinstance(value, list) else f"a {type(value).__name__}"
        raise BadRecordError(
            f'{record.where}: field "{shown(name)}" must be a list of {steps} labels, one for each step, not {given}',
            "labels and steps differ",
        )
    found = tuple(float(label) if isinstance(label, bool) else number(record, name, label) for label in value)
    if any(not 0 <= label <= 1 for label in found):
        raise BadRecordError(
            f'{record.where}: field "{shown(name)}": a label of a step must be true, false or from 0 to 1',
            "no label of a step",
        )
    return found


def step_ends(text: str, separator: str) -> list[int]:
    """Where each step of a response ends: the position after its last character that is no white space.

    What is blank between two separators is no step.
    """
    ends, start = list[int](), 0
    for part in text.split(separator):
        if kept := part.rstrip():
            ends.append(start + len(kept))
        start += len(part) + len(separator)
    return ends
