"""SIGTERM and Ctrl-C while a run trains: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignals:
    """Remembers the first signal instead of ending the process; a second Ctrl-C ends it at once.

    A context manager. `tell` is called with a line from inside the signal handler, so it must not print through
    Python's own streams. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in WORDS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            self.tell(f"{WORDS[self.received]}: finishing this step and saving it; Ctrl-C stops at once")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
