"""The lines of a file, compressed or not, read a few at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxlm.data.skipped import LONGEST_SHOWN, Skipped
from proxlm.errors import BadRecordError, DataError
from proxlm.files import open_regular
from proxlm.text import system_reason

LONGEST_LINE = 64 * 2**20
PIECE = 2**20

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_lines(path: Path) -> list[str]:
    """All lines of a small UTF-8 file, as `text_lines` yields them."""
    return [text for _, text in text_lines(path, Skipped())]


def text_lines(path: Path, skipped: Skipped) -> Iterator[tuple[int, str]]:
    """The number and text of each line, without LF or CRLF and byte order mark; bad lines go to `skipped`."""
    for number, line in byte_lines(path, skipped):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            reason = (
                f"{path}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not"
                " UTF-8; save the file as UTF-8"
            )
            raw = line[: 4 * LONGEST_SHOWN].decode(errors="backslashreplace")
            skipped.bad(BadRecordError(reason, "not UTF-8"), str(path), number, raw)
            continue
        yield number, text


def byte_lines(path: Path, skipped: Skipped, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """The number and bytes of each line, as text_lines; a line of more than `longest` bytes is a bad record."""
    number, size = 1, 0
    parts: list[bytes] = []
    for piece in pieces(path):
        size += len(piece)
        if size <= longest:
            parts.append(piece)
        elif parts or size == len(piece):  # the line has just become too long; the rest of it is ignored
            start = b"".join([*parts, piece])[: 4 * LONGEST_SHOWN].decode(errors="backslashreplace").rstrip()
            parts.clear()
            reason = f"{path}:{number}: the line is longer than {shown_size(longest)}; cut it into several"
            skipped.bad(BadRecordError(reason, "line too long"), str(path), number, start)
        if piece.endswith(b"\n"):
            if parts:
                yield number, b"".join(parts)[:-1].removesuffix(b"\r")
            parts.clear()
            number, size = number + 1, 0
    if parts:
        yield number, b"".join(parts).removesuffix(b"\r")


def pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes (.gz is decompressed) without a UTF-8 byte order mark, in pieces of at most PIECE bytes.

    A piece ends at the end of a line unless it is full or the file's last. Raises DataError if the file cannot be
    read, or is UTF-16 or UTF-32.
    """
    packed = path.suffix.lower() == ".gz"
    with (
        _reading(path),
        open_regular(path) as source,
        gzip.GzipFile(fileobj=source) if packed else source as file,
    ):
        piece = file.readline(PIECE)
        _check_encoding(path, piece)
        piece = piece.removeprefix(b"\xef\xbb\xbf")
        while piece:
            yield piece
            piece = file.readline(PIECE)


def shown_size(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 2**20:g} MiB"


def _check_encoding(path: Path, start: bytes) -> None:
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            raise DataError(
                f"{path}:1: byte 1 of the line (0x{start[0]:02x}) is not UTF-8: the file is {name}; save it as UTF-8"
            )
    head = start[:1024]
    if head.count(0) * 3 > len(head):
        raise DataError(f"{path}:1: the file has many NUL bytes: it is UTF-16, or not text; save it as UTF-8")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, but a file is needed") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is cut off or damaged ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {system_reason(error)}") from error
