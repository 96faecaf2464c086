"""What a Python caller passes instead of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from proxlm.config import PreferenceSettings, TextSettings
from proxlm.config.paths import home_expanded, is_named_source
from proxlm.config.values import shown_value
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.records import Source
from proxlm.errors import DataError


def record_source(values: Iterable[Any] | str | Path | None, name: str, field: str) -> Source | None:
    """Records as a source: a path stays a path, None stays None.

    Args:
        values: Texts, chats or records, or the path of a file of these.
        name: What messages call them.
        field: The field that a bare text or chat is.

    Raises:
        DataError: They are nothing that can be records.
    """
    if values is None:
        return None
    if isinstance(values, str | Path):
        path = home_expanded(str(values))
        # A data set's folder may be followed by :SPLIT.
        if not is_named_source(path) and not any(map(os.path.exists, (path, path.rpartition(":")[0]))):
            raise DataError(
                f"{name}: {shown_value(path)}: no such file; for a text itself, pass a list: [text]"
            )
        return path
    return InMemoryRecords(values, name, field)


def _sources(
    values: Iterable[Any] | str | Path | None, paths: Sequence[str], name: str, field: str
) -> list[Source]:
    """As `record_source`, where the settings have a list of paths: those, if nothing is passed."""
    source = record_source(values, name, field)
    return list(paths) if source is None else [source]


T = TypeVar("T", TextSettings, PreferenceSettings)


@dataclass(frozen=True)
class GivenRecords:
    """The records of supervised training: those that a Python caller passes, or else the files of the section [text].

    Attributes:
        training: Where the training records are.
        validation: Where the held-out records are; none: in the same files.
    """

    training: list[Source]
    validation: list[Source]

    @staticmethod
    def of(
        train: Iterable[Any] | str | Path | None,
        validation: Iterable[Any] | str | Path | None,
        text: TextSettings | PreferenceSettings,
    ) -> GivenRecords:
        """What was passed, or the files that the section names."""
        # What a bare text or chat is.
        field = text.messages_field if isinstance(text, TextSettings) else text.chosen_field
        return GivenRecords(
            _sources(train, text.train, "train", field),
            _sources(validation, text.validation, "validation", field),
        )

    @property
    def in_memory(self) -> bool:
        """Whether some are no files."""
        return any(isinstance(source, InMemoryRecords) for source in (*self.training, *self.validation))

    def named_in(self, text: T) -> T:
        """The section [text] with the names of what was given."""
        return replace(text, train=list(map(str, self.training)), validation=list(map(str, self.validation)))

    def by_setting(self) -> dict[str, Source]:
        """Each source by the setting that names it, whose content a resume compares."""
        parts = {"train": self.training, "validation": self.validation}
        return {f"text.{name}[{i}]": source for name, part in parts.items() for i, source in enumerate(part)}
