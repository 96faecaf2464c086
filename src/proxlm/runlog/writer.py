"""What a run writes while it goes on: metrics, samples, other loggers, and what the terminal shows."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from proxlm.config import RunConfig
from proxlm.errors import RunError
from proxlm.runlog.folder import append_jsonl, read_jsonl, truncate_jsonl
from proxlm.runlog.loggers import TensorBoard, WeightsAndBiases, check_wandb
from proxlm.runlog.plain import PlainView
from proxlm.runlog.state import RunState


class View(Protocol):
    """How a run shows on standard output."""

    def start(self) -> None: ...
    def step_done(self, now: float) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


class RunLog:
    """Writes down a run and shows it; a context manager.

    With `start_step`, the step of the checkpoint that a run goes on from, the rows after it are dropped first
    and the clock goes on where it stopped. `limit_seconds`: when the run ends even if steps are left; 0: no
    limit. Raises RunError where the folder cannot be written or a logger that is asked for is not there.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        run: RunConfig,
        start_step: int = 0,
        unit: str = "step",
        headline: Sequence[str] = ("reward", "kl"),
        limit_seconds: float = 0.0,
    ) -> None:
        self.folder, self.run = folder, run
        if run.wandb:
            check_wandb(run.wandb)
        past = _past_rows(folder, start_step)
        began = time.perf_counter()
        # A resumed run's clock goes on from the last row's.
        self._zero = began - (float(past[-1].get("time", 0.0)) if past else 0.0)
        self.state = RunState(title, unit, total_steps, start_step, limit_seconds, tuple(headline), began)
        for row in past:
            self.state.remember({name: v for name, v in row.items() if isinstance(v, int | float)})
        self._view = _view_for(self.state)
        self._loggers: list[TensorBoard | WeightsAndBiases] = []
        self._not_finite: set[str] = set()

    def __enter__(self) -> Self:
        try:
            if self.run.wandb:
                self._loggers.append(WeightsAndBiases(self.folder, self.run.wandb))
            if self.run.tensorboard:
                self._loggers.append(TensorBoard(self.folder, self.state.start_step))
        except RunError:
            self._close(failed=True)
            raise
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.stop()
        self._close(failed=kind is not None)

    def _close(self, failed: bool) -> None:
        for logger in self._loggers:
            logger.close(failed)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's numbers, and show them. One that is not finite is null there, and counted."""
        now = time.perf_counter()
        numbers = {name: float(value) for name, value in values.items()}
        row = {"time": round(now - self._zero, 3), **numbers}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            row["not_finite"] = len(bad)
        append_jsonl(self.folder / "metrics.jsonl", [{"step": step, **row}])
        for logger in self._loggers:
            logger.log(step, {name: value for name, value in row.items() if name not in bad})
        self.state.finish_step(step, numbers, now)
        for name in bad:
            if name not in self._not_finite:
                self._not_finite.add(name)
                self.note(f"{self.state.unit} {step}: {name} is not a finite number: {numbers[name]}")
        self._view.step_done(now)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write sampled texts of a step to samples.jsonl; nothing if there are none."""
        if rows:
            append_jsonl(self.folder / "samples.jsonl", [{"step": step, **row} for row in rows])

    def phase(self, name: str) -> None:
        """Show that a part of the step begins: generate, score, prepare, update, validate ..."""
        self.state.enter(name)

    def progress(self, done: int, total: int) -> None:
        """Show how far the phase is."""
        self.state.phase_done, self.state.phase_total = done, total

    def note(self, text: str) -> None:
        """A line for the user: above the live view, or between the lines of the plain log."""
        self._view.note(text)


def _past_rows(folder: Path, start_step: int) -> list[dict[str, Any]]:
    """The metrics of the steps up to `start_step`, after all later rows have been dropped."""
    metrics, samples = folder / "metrics.jsonl", folder / "samples.jsonl"
    if start_step == 0:
        # Appending would mix two runs, and emptying the file would lose one.
        for file in (metrics, samples):
            if file.exists():
                raise RunError(f"{file}: already holds a run's rows; choose another run.folder")
        return []
    for file in (metrics, samples):
        truncate_jsonl(file, "step", start_step)
    return read_jsonl(metrics) if metrics.exists() else []


def _view_for(state: RunState) -> View:
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from proxlm.runlog.live import LiveView

        return LiveView(state)
    return PlainView(state)
