"""SIGTERM and Ctrl-C while a run trains: the step is finished and saved first."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from proxlm.runlog.state import RunState

SIGNAL_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopSignals:
    """Remembers the first signal instead of ending the process; a second Ctrl-C ends it at once.

    A context manager. Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        report: called with a line from inside the signal handler, so it must not print through Python's own streams.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNAL_NAMES:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            name = SIGNAL_NAMES[self.received]
            self.report(f"{name}: finishing this step and saving it; Ctrl-C stops at once")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def stopped_message(stop: signal.Signals, state: RunState, folder: Path, in_python: bool) -> str:
    """What is printed when a signal has ended a run: after which step, and how to resume.

    Args:
        in_python: only the same call in Python can resume the run.
    """
    command = f"proxlm {state.job} {shlex.quote(str(folder / 'config.toml'))} --resume"
    how = "the same call and run.resume = true" if in_python else command
    return f"stopped by {SIGNAL_NAMES[stop]} after step {state.step} of {state.total_steps}, saved; go on with: {how}"
