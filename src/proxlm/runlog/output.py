"""Standard output and error that may be closed, full, or a terminal that is gone."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO, cast

from proxlm.masking import masked
from proxlm.text import on_screen


class GuardedStream:
    """A text stream whose errors do not reach who prints. After the first one its output is discarded.

    Whoever prints to it, a user's function too, cannot make a terminal obey: control characters but line ends and
    tabs are spelled out, and secrets are masked (`on_screen`). Our own colours and progress lines go through
    `terminal_of`.

    Args:
        stream: standard output or error.
        lost: called with the first error; what it raises reaches who prints.
        shows: what is written of a text.
    """

    def __init__(
        self,
        stream: TextIO,
        lost: Callable[[OSError], None] | None = None,
        shows: Callable[[str], str] = on_screen,
    ) -> None:
        self._stream, self._lost, self._shows = stream, lost, shows

    def write(self, text: str) -> int:
        """Write a text, as the stream does."""
        try:
            self._stream.write(self._shows(text))
        except OSError as error:
            self._failed(error)
        return len(text)

    def obeyed(self) -> GuardedStream:
        """The same stream for text of our own, whose control characters a terminal is to obey."""
        return GuardedStream(self._stream, self._lost, masked)

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


def terminal_of(stream: TextIO) -> TextIO:
    """Standard output or error for text of our own that moves the cursor or sets colours; foreign text in it is our
    own duty (`on_screen`)."""
    return cast(TextIO, stream.obeyed()) if isinstance(stream, GuardedStream) else stream


def print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nothing has caught, as Python does, but as `on_screen` shows it: for sys.excepthook."""
    lines = traceback.format_exception(kind, error, trace)
    with suppress(OSError, ValueError):
        print(on_screen("".join(lines)), end="", file=sys.stderr, flush=True)


def report_line(text: str) -> None:
    """Write a line to standard error past Python's own buffers, which a signal may have interrupted."""
    try:
        os.write(2, f"{on_screen(text)}\n".encode())
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
