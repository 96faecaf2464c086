"""What a folder of many runs belongs to: its plan, which the same command finds again and no other overwrites."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxlm.errors import RunError
from proxlm.runlog.folder import plain, write_json_atomic
from proxlm.text import system_reason


def begin(folder: Path, name: str, plan: Mapping[str, Any]) -> None:
    """Make the folder with its plan in the file `name`, or see that it is of the same plan.

    Raises:
        RunError: It holds another plan, or something else.
    """
    file, content = folder / name, json.loads(json.dumps(plain(plan)))
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file}: cannot be read; give another folder") from error
        known = known if isinstance(known, dict) else {}
        if other := [key for key in content if known.get(key) != content[key]]:
            raise RunError(
                f"{folder}: was begun with other {', '.join(other)}; give another folder, or the same again"
            )
        return
    try:
        if os.path.isdir(folder) and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise RunError(f"{folder}: holds something else; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {system_reason(error)}; give another folder") from error
    write_json_atomic(file, content)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one process at a time chooses what to train next; others wait.

    The system ends the hold of a process that dies.
    """
    import fcntl

    handle = os.open(folder / ".drawing", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
