"""A run as a view that stays in its place on a terminal and moves with the run."""

from __future__ import annotations

import sys
import time
from typing import TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proxlm.runlog.output import GuardedStream, terminal_of
from proxlm.runlog.state import RunState
from proxlm.runlog.text import SHOWN, duration, number, sparkline
from proxlm.text import on_screen, shown

REFRESHES_PER_SECOND = 4
NARROW = 45  # columns below which the sparklines go without their lowest and highest value
NUMBER_WIDTH = 26  # a key number with its name


class LiveView:
    """Draws the run's state a few times a second; whatever else is printed appears above it."""

    def __init__(self, state: RunState, console: Console | None = None) -> None:
        self.state = state
        self.console = console or Console(file=terminal_of(sys.stdout))
        self._live = Live(
            get_renderable=lambda: draw(self.state, time.perf_counter(), self.console.width),
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
        )

    def start(self) -> None:
        """Take the lines at the bottom of the terminal."""
        self._live.start()
        # What others print now appears above the view, through rich; it obeys no control characters either.
        self._redirected = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast(TextIO, GuardedStream(stream)) for stream in self._redirected)

    def step_done(self, now: float) -> None:
        """Nothing to do: the next refresh shows it."""

    def note(self, text: str) -> None:
        """Print a line above the view."""
        self.console.print(Text(on_screen(text)))

    def alert(self, text: str) -> None:
        """Show a line from the next refresh on. Nothing is printed: a signal may have come in the middle of it."""
        self.state.notice = text

    def stop(self) -> None:
        """Draw a last time, keep that on the screen, and release the terminal."""
        self.state.enter("")
        sys.stdout, sys.stderr = self._redirected
        self._live.stop()


def draw(state: RunState, now: float, width: int) -> RenderableType:
    """The view: what is going on, how far the run is, the headline as sparklines, the newest numbers."""
    parts: list[RenderableType] = [_now(state, now), _bar(state, now)]
    lines = _sparklines(state, width)
    numbers = _numbers(state, width)
    for table in (lines, numbers):
        if table.row_count:
            parts += [Text(), table]
    if state.notice:
        parts.append(Text(on_screen(state.notice), style="yellow"))
    return Group(*parts)


def _now(state: RunState, now: float) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{state.job} ", style="bold")
    text.append(f"{state.unit} {state.step}/{state.total_steps}")
    text.append(f"  {duration(now - state.began)} elapsed", style="dim")
    done = state.step >= state.total_steps
    if not done:
        text.append(f"  {duration(state.seconds_left(now))} left", style="dim")
    if state.phase:
        text.append(f"  {state.phase}", style="cyan")
        if state.phase_total:
            text.append(f" {state.phase_done}/{state.phase_total}", style="cyan")
    return text


def _bar(state: RunState, now: float) -> RenderableType:
    """The run's bar over the whole width."""
    share = state.share_done(now)
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", width=4)
    grid.add_row(ProgressBar(total=1.0, completed=share), f"{share:.0%}")
    return grid


def _sparklines(state: RunState, width: int) -> Table:
    """A row for each headline metric: name, newest number, curve over the whole run, lowest and highest."""
    names = [name for name in state.headline if state.history[name]]
    label_width = max((len(shown(name)) for name in names), default=0)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for name in names:
        values = state.history[name]
        finite = [v for v in values if abs(v) < float("inf")]
        span = f"{number(min(finite))} to {number(max(finite))}" if finite and width >= NARROW else ""
        curve_width = max(8, min(60, width - label_width - len(span) - 14))
        table.add_row(
            Text(shown(name), style="bold"),
            Text(number(values[-1]), style="bold"),
            Text(sparkline(values, curve_width), style="green"),
            Text(span, style="dim"),
        )
    return table


def _numbers(state: RunState, width: int) -> Table:
    """The newest of the other numbers, as many beside each other as there is room for."""
    names = [name for name in SHOWN if name in state.latest and name not in state.headline]
    cells = [(name, number(state.latest[name])) for name in names]
    if (pace := state.seconds_per_step()) == pace:  # NaN before the first step
        cells.append((f"s/{state.unit}", number(pace)))
    columns = max(1, min(4, (width + 2) // (NUMBER_WIDTH + 2)))
    table = Table.grid(padding=(0, 2))
    for _ in range(columns):
        table.add_column(width=NUMBER_WIDTH, no_wrap=True)
    for i in range(0, len(cells), columns):
        table.add_row(*(_cell(label, value) for label, value in cells[i : i + columns]))
    return table


def _cell(label: str, value: str) -> Text:
    return Text(f"{label:<{NUMBER_WIDTH - len(value) - 1}} ", style="dim").append(value, style="not dim")
