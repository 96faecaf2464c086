"""What the operating system refuses, as one line: what it was, on which path, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from proxlm.errors import RunError
from proxlm.text import reason_of, shown, system_reason

_SPACE = "free some space, or give another folder"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: "give a folder that can be written",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or give a file system without it",
    errno.EIO: "the disk or the way to it fails: look into the system's log, or give another folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has no more open files",
    errno.EACCES: "change its permissions, or give another folder",
    errno.EPERM: "change its permissions, or give another folder",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u), or end other programs",
    errno.ENOMEM: "end other programs, or raise the limit of memory",
}
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# How Rust's libraries (safetensors, tokenizers) end the text of an error that the system gave them.
_RUST = re.compile(r"\(os error (\d+)\)")
_NO_THREADS = "can't start new thread"


def system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind an exception, or None: the exception itself, its cause, or what its text tells.

    Libraries in Rust have errors of their own that end in "(os error 28)"; Python has a RuntimeError for a thread
    that cannot be started.
    """
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            return error
        text = str(error)
        if isinstance(error, Exception) and (found := _RUST.search(text)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        if isinstance(error, RuntimeError) and _NO_THREADS in text:
            return OSError(errno.EAGAIN, "no more threads can be started")
        error = error.__cause__ or error.__context__
    return None


def refused(error: OSError) -> str:
    """Reason, the path if the error names one, and advice, on one line; for an error that nobody has explained."""
    doing = "writing " if error.errno in _OF_WRITING else ""
    where = f" ({doing}{shown(os.fsdecode(error.filename), 200)})" if _names_a_path(error) else ""
    return f"{system_reason(error)}{where}: {_ADVICE.get(error.errno or 0, 'look at what is there')}"


def cannot_write(path: Path, error: BaseException, what: str = "") -> RunError:
    """The error that says that a file or a folder cannot be written.

    Args:
        path: What was to be written.
        error: Any error with a `system_error` behind it.
        what: What it is, for the message: "the checkpoint of step 2".
    """
    found = system_error(error)
    if found is None:
        return RunError(f"{path}: {what + ' ' if what else ''}cannot be written: {reason_of(error)}")
    within = _within(path, found)
    message = f"{path}: {what + ' ' if what else ''}cannot be written: {system_reason(found)}{within}"
    return RunError(f"{message}{what_to_do(found)}")


def _within(folder: Path, error: OSError) -> str:
    """The file below the folder that the error names."""
    below = os.path.relpath(os.fsdecode(error.filename), folder) if _names_a_path(error) else "."
    return "" if below == "." or below.startswith("..") else f" ({shown(below)})"


def _names_a_path(error: OSError) -> bool:
    return isinstance(error.filename, str | bytes | os.PathLike) and bool(error.filename)


def what_to_do(error: BaseException) -> str:
    """What to do about the system's error behind an exception, to be put behind a message; empty for others."""
    found = system_error(error)
    what = found and _ADVICE.get(found.errno or 0)
    return f"; {what}" if what else ""
