"""What a step of `proxlm data` is: of single records, or of all records together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from proxlm.corpus.texts import Fields
from proxlm.data.skipped import Record

Rows = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step makes of a record.

    Attributes:
        fields: The record after the step.
        removed: Why it is left out, in a few words that are the same for all such records; "": it stays.
        detail: What more there is to say of this one.
        labels: What the step has found in it, counted.
    """

    fields: Fields
    removed: str = ""
    detail: str = ""
    labels: dict[str, int] = field(default_factory=dict)


class RecordStep(Protocol):
    """A step that looks at one record after another, and remembers nothing."""

    def __call__(self, record: Record) -> Outcome:
        """The record after the step. Raises BadRecordError for a record that it cannot judge."""


@dataclass(frozen=True)
class Verdict:
    """What a step of the whole corpus has decided.

    Attributes:
        like: For each record the one that it is left out for, or its own number where it stays.
        part: For each record the number of its part; None: there is one part.
        removed: Why the others are left out.
        detail: What more there is to say of a record that is left out, by its number.
        facts: Numbers for the data card.
    """

    like: Numbers
    part: npt.NDArray[np.uint8] | None = None
    removed: str = ""
    detail: Callable[[int], str] = lambda _: ""
    facts: dict[str, Any] = field(default_factory=dict)


class CorpusStep(Protocol):
    """A step that needs a few bytes of every record before it can decide about any.

    Attributes:
        width: Bytes of a row.
        parts: The names of the parts that it makes; empty: one.
    """

    width: int
    parts: tuple[str, ...]

    def row(self, record: Record) -> bytes:
        """The bytes that stand for a record. Raises BadRecordError."""

    def decide(self, rows: Rows) -> Verdict:
        """rows: [records, width], perhaps a file mapped into memory."""
