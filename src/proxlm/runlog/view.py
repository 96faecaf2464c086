"""How a run shows on standard output: a live view on a terminal, else lines of text."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from proxlm.runlog.plain import PlainView
from proxlm.runlog.state import RunState


class View(Protocol):
    """Shows a run's state."""

    def start(self) -> None:
        """Begin to show it."""

    def step_done(self, now: float) -> None:
        """Show a step that ended at `now`, a time of `time.perf_counter`."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def alert(self, text: str) -> None:
        """Show a line from inside a signal handler or another thread."""

    def stop(self) -> None:
        """Show the last state and end."""


def view_for(state: RunState) -> View:
    """The view that fits standard output."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from proxlm.runlog.live import LiveView  # rich, which takes a moment to import

        return LiveView(state)
    return PlainView(state)
