"""A run as lines of text, for an output that is not a terminal."""

from __future__ import annotations

import math
import sys

from proxlm.runlog.output import report_line
from proxlm.runlog.state import RunState
from proxlm.runlog.text import IN_A_LINE, duration, headline_and_more, number

SECONDS_BETWEEN_LINES = 1.0


def step_line(state: RunState, now: float) -> str:
    """ "ppo 12/200  reward 0.412  kl 3.21  entropy 1.90  clip_fraction 0.050  1.80 s/step  left 5m 38s" """
    shown = headline_and_more(state.latest, state.headline, IN_A_LINE)
    parts = [f"{state.job} {state.step}/{state.total_steps}"]
    parts += [f"{label} {value}" for label, value in shown.items()]
    if not math.isnan(pace := state.seconds_per_step()):
        parts.append(f"{number(pace)} s/{state.unit}")
    parts.append(f"left {duration(state.seconds_left(now))}")
    return "  ".join(parts)


class PlainView:
    """A line a step on standard output, but not more than one a second, and always the first and the last."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self._written_at = -math.inf
        self._waiting: str | None = None

    def start(self) -> None:
        """Nothing to do: the first step writes the first line."""

    def step_done(self, now: float) -> None:
        """Write the step's line, or keep it until it turns out to be the last."""
        self._waiting = step_line(self.state, now)
        if now - self._written_at >= SECONDS_BETWEEN_LINES or self.state.step >= self.state.total_steps:
            self._written_at = now
            self.stop()

    def note(self, text: str) -> None:
        """Write a line."""
        # The output may not know every character, and a run must not end because of that.
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), flush=True)

    def alert(self, text: str) -> None:
        """Write a line to standard error, past Python's own buffers: a signal may have come in the middle of them."""
        report_line(text)

    def stop(self) -> None:
        """Write the last step's line, if it has not been."""
        if self._waiting is not None:
            self.note(self._waiting)
            self._waiting = None
