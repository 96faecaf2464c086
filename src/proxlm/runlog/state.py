"""The state of a run that the live view and the plain log show."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The first steps are slower than the rest (caches, compilation), so only the newest ones predict the time left.
RECENT_STEPS = 20


@dataclass
class RunState:
    """Counters and newest numbers of a run. Times are seconds of a clock that only goes forward.

    Attributes:
        job: the job's name.
        unit: the word for a step.
        start_step: the step that a resumed run starts after; 0: a new run.
        limit: seconds after which the run stops even if steps are left; 0: no limit.
        headline: metrics whose whole history is kept.
        began: when this process began the run.
        phase: what part of the step is running; phase_done of phase_total parts of it are done.
        notice: a line that stays in the live view.
    """

    job: str
    unit: str
    total_steps: int
    start_step: int
    limit: float
    headline: Sequence[str]
    began: float
    step: int = 0
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    notice: str = ""
    latest: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step = self.start_step
        self.history = {name: [] for name in self.headline}
        self._ends = deque([(self.step, self.began)], maxlen=RECENT_STEPS + 1)

    def remember(self, values: Mapping[str, float]) -> None:
        """Add one step's metrics, of this process or of an earlier one."""
        self.latest |= values
        for name in self.headline:
            if name in values:
                self.history[name].append(values[name])

    def finish_step(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Add the metrics of the step that ended at `now`."""
        self.remember(values)
        self.step = step
        self._ends.append((step, now))

    def enter(self, phase: str) -> None:
        """Begin a phase of the step."""
        self.phase, self.phase_done, self.phase_total = phase, 0, 0

    def seconds_per_step(self) -> float:
        """The mean of the newest steps; NaN before the first has ended."""
        (first_step, first_end), (last_step, last_end) = self._ends[0], self._ends[-1]
        steps = last_step - first_step
        return (last_end - first_end) / steps if steps > 0 else math.nan

    def share_done(self, now: float) -> float:
        """The share of the run that is done, 0 to 1."""
        by_steps = self.step / self.total_steps if self.total_steps else 1.0
        by_time = (now - self.began) / self.limit if self.limit else 0.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, now: float) -> float:
        """An estimate; NaN before the first step has ended, unless there is a limit."""
        left = self.seconds_per_step() * (self.total_steps - self.step) - (now - self._ends[-1][1])
        if self.limit:
            by_limit = self.limit - (now - self.began)
            left = by_limit if math.isnan(left) else min(left, by_limit)
        return left if math.isnan(left) else max(0.0, left)
