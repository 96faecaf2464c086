"""What a Python caller passes instead of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def record_sources(
    values: Iterable[Any] | str | Path | None, paths: Sequence[str], name: str, field: str
) -> list[Source]:
    """As `record_source`, where the settings have a list of paths: those, if nothing is passed."""
    source = record_source(values, name, field)
    return list(paths) if source is None else [source]
