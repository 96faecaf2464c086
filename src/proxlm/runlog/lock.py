"""One process a run: a lock on the folder, which the system takes back when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proxlm.errors import RunError
from proxlm.text import system_reason

NAME = ".lock"

# The locked files of this process. The system keeps a lock as long as any process has the file open, so a process
# that a reward or an environment forks must close it, or the lock would outlive the run.
_HELD: set[int] = set()


def _release_in_child() -> None:
    for handle in _HELD:
        with suppress(OSError):
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises RunError, with the other's process id and host, where another run holds it."""
    handle = _take(folder)
    try:
        yield
    finally:
        if handle in _HELD:  # else this is a forked child, in which nothing is held
            # In this order nobody can lock a file that is no longer there and believe that it counts.
            (folder / NAME).unlink(missing_ok=True)
            _HELD.discard(handle)
            os.close(handle)


def refuse_if_held(folder: Path) -> None:
    """Raise RunError where another run holds the folder. Nothing is written."""
    try:
        handle = os.open(folder / NAME, os.O_RDWR)
    except (OSError, ValueError):  # no folder, or none that can be, or no run in it
        return
    try:
        _lock(handle, folder)
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a run is in progress in the folder."""
    try:
        refuse_if_held(folder)
    except RunError:
        return True
    return False


def _take(folder: Path) -> int | None:
    """A handle of the locked file; None on a file system that has no locks."""
    while True:
        try:
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"{folder / NAME}: cannot be written: {system_reason(error)}") from error
        try:
            if not _lock(handle, folder):
                os.close(handle)
                return None
            if _is_still(handle, folder):
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
                _HELD.add(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # it was another run's, which has ended just now and taken its file away


def _lock(handle: int, folder: Path) -> bool:
    """Lock the open file; False where the file system cannot. Raises RunError where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise RunError(f"{folder / NAME}: cannot be locked: {system_reason(error)}") from error
        raise RunError(f"{folder}: {_holder(handle, folder)}") from error
    return True


def _holder(handle: int, folder: Path) -> str:
    """Who holds the folder, and what to do about it."""
    who = os.read(handle, 200).decode("utf-8", "replace").split()
    advice = "wait for it or stop it, or choose another run.folder"
    if len(who) != 2:
        return f"another process is running in this folder; {advice}"
    number, host = who
    if host == socket.gethostname() and number.isdecimal() and not _is_alive(int(number)):
        return (
            f"process {number} on {host} has ended, but a process that it started still has {folder / NAME} open; end"
            " that one (fuser finds it), or choose another run.folder"
        )
    return f"process {number} on {host} is running in this folder; {advice}"


def _is_alive(number: int) -> bool:
    """Whether there is a process of this number, as far as this one may know."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _is_still(handle: int, folder: Path) -> bool:
    """Whether the open file is the one that is in the folder now."""
    try:
        there = os.stat(folder / NAME)
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)
