"""Standard output and error that may be closed, full, or a terminal that is gone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TextIO


class GuardedStream:
    """A text stream whose errors do not reach who prints. After the first one its output is discarded.

    Args:
        stream: standard output or error.
        lost: called with the first error; what it raises reaches who prints.
    """

    def __init__(self, stream: TextIO, lost: Callable[[OSError], None] | None = None) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        """Write a text, as the stream does."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, as it does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        discard(self._stream)
        if self._lost is not None:
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)


def discard(stream: TextIO) -> None:
    """Send what a stream has buffered, and all that is still written to it, nowhere."""
    if isinstance(stream, io.TextIOWrapper):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def report_line(text: str) -> None:
    """Write a line to standard error past Python's own buffers, which a signal may have interrupted."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        return


def open_standard_streams() -> None:
    """Open what the process was started without, on a device that discards it.

    Otherwise the first file that is opened would take the descriptor, and receive what C libraries and child
    processes print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
            os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
