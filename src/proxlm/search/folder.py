"""A folder of many runs, in which several processes may work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
