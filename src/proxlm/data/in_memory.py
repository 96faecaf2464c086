"""Records that a Python caller hands over instead of a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxlm.data.fields import without_nulls
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
        if hasattr(values, "iterrows"):  # iterating over it would give the names of its columns
            raise DataError(f'{name}: a DataFrame; pass its rows: frame.to_dict("records")')
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise DataError(
                f"{name}: expected a list of texts, chats or records, got {type(values).__name__}"
            )
        self.name, self.field, self.values = name, field, list(values)
        if not self.values:
            raise DataError(f"{name}: there are no records")

    def __str__(self) -> str:
        return self.name

    def sha256(self) -> str:
        """A hash of the records in their order; of what JSON cannot hold, only the type counts."""
        digest = hashlib.sha256()
        for value in self.values:
            try:
                text = json.dumps(value, default=lambda other: type(other).__name__)
            except (TypeError, ValueError, RecursionError):
                text = type(value).__name__
            digest.update(f"{text}\n".encode())
        return digest.hexdigest()

    def records(self, skipped: Skipped) -> Iterator[Record]:
        """Each value as a record; one of another type goes to `skipped`."""
        for number, value in enumerate(self.values, start=1):
            try:
                yield Record(self._fields(number, value), number, self.name)
            except BadRecordError as error:
                skipped.bad(error, self.name, number, repr(value))

    def _fields(self, number: int, value: Any) -> dict[str, Any]:
        where = f"{self.name}:{number}"
        if isinstance(value, str | list | tuple):
            value = {self.field: value}
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise BadRecordError(
                f"{where}: expected a text, a list of messages or a mapping, got {kind}", "no record"
            )
        return without_nulls(value, where)
