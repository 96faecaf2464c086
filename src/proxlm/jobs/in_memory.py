"""What a Python caller passes instead of files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.records import Source

# Stands in a run's config.toml for what only Python can pass.
IN_MEMORY = "<in memory>"


def record_source(values: Iterable[Any] | str | Path | None, name: str, field: str) -> Source | None:
    """Records as a source: a path stays a path, None stays None.

    Args:
        values: Texts, chats or records, or the path of a file of these.
        name: What messages call them.
        field: The field that a bare text or chat is.

    Raises:
        DataError: They are nothing that can be records.
    """
    if values is None or isinstance(values, str | Path):
        return None if values is None else str(values)
    return InMemoryRecords(values, name, field)


def record_sources(
    values: Iterable[Any] | str | Path | None, paths: Sequence[str], name: str, field: str
) -> list[Source]:
    """As `record_source`, where the settings have a list of paths: those, if nothing is passed."""
    source = record_source(values, name, field)
    return list(paths) if source is None else [source]
