"""Opening what is meant to be a file: nothing waits for a pipe's writer, and nothing reads a device without end.

A name in a setting or in a folder may belong to a FIFO, a device, a socket or a folder. Opening a FIFO waits for a
writer, perhaps for ever, and /dev/zero never ends. So every file that is read goes through `open_regular` or
`read_regular`, which look at the kind first. What they refuse is an OSError like every other reason why a file
cannot be read: callers that handle OSError and show `system_reason` need nothing else.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

PathLike = str | os.PathLike[str]

# How a shell hands over a pipe: `<(command)`, `| proxlm … /dev/stdin`.
_DESCRIPTORS = ("/dev/fd/", "/proc/self/fd/")
_STDIN = "/dev/stdin"
_AT_ONCE = 2**20


class NotRegularFileError(OSError):
    """The path is a FIFO, a device or a socket, where a file is needed."""


class FileTooLargeError(OSError):
    """The file holds more bytes than its reader takes."""


def open_regular(path: PathLike, pipe: bool = False) -> BufferedReader:
    """Open a regular file for reading, as open(path, "rb") does; it never waits.

    Args:
        path: The file; symbolic links are followed.
        pipe: Whether it may also be a pipe that this process was started with (/dev/stdin, /dev/fd/N). Reading
            that waits for its writer. A FIFO with a name of its own is refused all the same.

    Raises:
        NotRegularFileError: It is a FIFO, a device or a socket.
        IsADirectoryError: It is a folder.
        OSError: It cannot be opened.
        ValueError: It cannot be a path (it holds a NUL).
    """
    piped = pipe and _names_descriptor(path)
    # Before it is opened: opening has effects on some devices, and releases the writer of a FIFO.
    _refuse(path, os.stat(path).st_mode, piped)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        _refuse(path, os.fstat(handle).st_mode, piped)  # it may have been exchanged since
        os.set_blocking(handle, True)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: PathLike, limit: int, pipe: bool = False) -> bytes:
    """All bytes of a regular file.

    Args:
        path: The file.
        limit: The most bytes that it may hold; of a larger one, no more than this is read.
        pipe: As for `open_regular`.

    Raises:
        FileTooLargeError: It holds more than `limit` bytes.
        OSError: As `open_regular`.
        ValueError: As `open_regular`.
    """
    parts: list[bytes] = []
    left = limit + 1
    with open_regular(path, pipe) as file:
        while left and (part := file.read(min(left, _AT_ONCE))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise FileTooLargeError(errno.EFBIG, f"larger than {_size(limit)}", os.fspath(path))
    return b"".join(parts)


def check_regular(path: PathLike) -> None:
    """Raise NotRegularFileError if a FIFO, a device or a socket is at the path; anything else, or nothing, is fine.

    For what is about to be written or replaced, and for files that a library opens by itself.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISDIR(mode):
        _refuse(path, mode, False)


def check_folder(folder: PathLike) -> None:
    """Raise NotRegularFileError if a FIFO, a device or a socket is in a folder whose files a library reads.

    What is no folder (a name on the hub, for instance) is fine.
    """
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return
    for name in names:
        check_regular(Path(folder, name))


def _refuse(path: PathLike, mode: int, piped: bool) -> None:
    """Raise the error for what is not a regular file."""
    if stat.S_ISREG(mode) or (piped and stat.S_ISFIFO(mode)):
        return
    name = os.fspath(path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    raise NotRegularFileError(errno.EINVAL, f"not a regular file but {_kind(mode)}", name)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe (FIFO)"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def _names_descriptor(path: PathLike) -> bool:
    name = os.fspath(path)
    return name == _STDIN or name.startswith(_DESCRIPTORS)


def _size(limit: int) -> str:
    return f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit / 2**10:g} KiB"
