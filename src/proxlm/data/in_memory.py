"""Records that a Python caller hands over instead of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxlm.data.skipped import Record, Skipped
from proxlm.errors import BadRecordError, DataError


class InMemoryRecords:
    """Records in memory; stands wherever a path of a data file may stand.

    A text or a list of chat messages is the record whose only field is `field`; a mapping (a row of a
    `datasets.Dataset`, for instance) is the record itself. Records are counted from 1, and error messages name them
    `name:number`.

    Args:
        values: the records; an iterable is read once.
        name: what messages call them, for instance "prompts".
        field: the field that a bare text or a list of messages is.

    Raises:
        DataError: `values` is a single text or mapping, or holds nothing.
    """

    def __init__(self, values: Iterable[Any], name: str, field: str) -> None:
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise DataError(
                f"{name}: expected a list of texts, chats or records, not a {type(values).__name__}"
            )
        self.name, self.field, self.values = name, field, list(values)
        if not self.values:
            raise DataError(f"{name}: there are no records")

    def __str__(self) -> str:
        return self.name

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Each value as a record; one of another type goes to `skipped`."""
        for number, value in enumerate(self.values, start=1):
            if isinstance(value, Mapping):
                yield Record(dict(value), number, self.name)
            elif isinstance(value, str | list | tuple):
                yield Record(
                    {self.field: list(value) if isinstance(value, tuple) else value}, number, self.name
                )
            else:
                kind = type(value).__name__
                error = BadRecordError(
                    f"{self.name}:{number}: expected a text, a list of messages or a mapping, not a {kind}",
                    "no record",
                )
                skipped.bad(error, self.name, number, repr(value))
