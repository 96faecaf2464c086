"""The file operations of a process: recorded in order, or one of them refused. See file_operations.c."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
# Operations that change nothing a crash could show, but that may be refused.
NO_EFFECT = ("open", "close", "failed", "mark")


@dataclass(frozen=True)
class Operation:
    """One operation that succeeded ("failed": one that did not, such as opening a file that is not there).

    Attributes:
        kind: create, truncate, open, write, close, sync, rename, link, unlink, mkdir, rmdir, chmod, mark.
        path: From the folder that was watched; "" is that folder.
        other: The new name of a rename or link.
        value: A write's offset, a truncation's length, a mode; of a close, how the file was opened (os.O_RDONLY).
        data: What was written.
    """

    kind: str
    path: str
    other: str = ""
    value: int = 0
    data: bytes = b""


def restart_with_library() -> None:
    """Start this Python program again with the library loaded, if it is not. Exits where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        sys.exit("no C compiler (cc, gcc or clang): file operations cannot be recorded")
    loaded = os.environ.get("PROXLM_FILE_OPERATIONS", "")
    if loaded and Path(loaded).exists():
        return
    library = Path(tempfile.mkdtemp(prefix="file-operations-")) / "file_operations.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True
    )
    before = os.environ.get("LD_PRELOAD", "")
    os.environ |= {"PROXLM_FILE_OPERATIONS": str(library), "LD_PRELOAD": f"{library} {before}".strip()}
    os.execv(sys.executable, sys.orig_argv)


class Watcher:
    """The library in this process. What it does lasts until `stop`, and ends with the process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["PROXLM_FILE_OPERATIONS"])
        self._library.operations_seen.restype = ctypes.c_long

    def record(self, folder: Path, log: Path) -> None:
        """Write every operation below `folder` to `log`."""
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._library.record_operations(os.fsencode(folder.resolve()), handle)

    def refuse(self, folder: Path, at: int, error: int, count: int = 1, cut: bool = False) -> None:
        """Refuse operation number `at`, from 1, and the `count` − 1 after it, with the error of that number.

        cut: A write is done by half instead.
        """
        self._library.fail_operation(
            os.fsencode(folder.resolve()), ctypes.c_long(at), ctypes.c_long(count), error, int(cut)
        )

    def mark(self, word: str) -> None:
        """Put a word between the recorded operations, as one of kind "mark" whose path it is."""
        self._library.mark_operations(word.encode())

    def refuse_threads(self, after: int) -> None:
        """Start `after` more threads in this process, and then none."""
        self._library.refuse_threads(ctypes.c_long(after))

    def stop(self) -> None:
        """Watch no more."""
        self._library.stop_watching()


def read_log(log: Path, folder: Path) -> list[Operation]:
    """The operations of a log. Raises ValueError for those that the library cannot follow."""
    return list(_read(log.read_bytes(), str(folder.resolve())))


def _read(log: bytes, folder: str) -> Iterator[Operation]:
    at = 0
    while at < len(log):
        end = log.index(b"\n", at)
        kind, path, other, value, length = os.fsdecode(log[at:end]).split("\t")
        at = end + 1 + int(length)
        if kind == "unseen":
            raise ValueError(f"{other or 'fallocate'} on {path}: what it writes is not recorded")
        inside = [p.removeprefix(folder).lstrip("/") if p.startswith(folder) else p for p in (path, other)]
        yield Operation(kind, *inside, value=int(value), data=log[end + 1 : at])
