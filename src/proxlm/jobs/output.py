"""The file in which a command writes its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxlm.evaluation.tables import FORMATS, Table
from proxlm.runlog.folder import write_atomic, write_json_atomic
from proxlm.runlog.outputs import title_of


def write_output(file: Path, command: str, tables: Sequence[Table], content: Any) -> None:
    """Write a command's result as the file's name ends: tables, or their content as JSON."""
    if file.suffix == ".json":
        write_json_atomic(file, content)
    else:
        write_atomic(file, FORMATS[file.suffix](tables, title_of(command)))
