"""What a run writes while it goes on: metrics, samples, other loggers, and what the terminal shows."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Any, Protocol, Self

from proxlm.config import RunSettings
from proxlm.errors import RunError, StoppedBySignalError
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import append_jsonl, read_jsonl, sync_file, truncate_jsonl
from proxlm.runlog.interrupt import WORDS, StopSignals
from proxlm.runlog.loggers import TensorBoard, WeightsAndBiases, check_wandb
from proxlm.runlog.plain import PlainView
from proxlm.runlog.state import RunState
from proxlm.runlog.watchdog import Watchdog
from proxlm.text import did_you_mean


class View(Protocol):
    """How a run shows on standard output."""

    def start(self) -> None: ...
    def step_done(self, now: float) -> None: ...
    def note(self, text: str) -> None: ...
    def alert(self, text: str) -> None: ...
    def stop(self) -> None: ...


class RunLog:
    """Writes down a run and shows it; a context manager.

    With `start_step`, the step of the checkpoint that a run goes on from, the rows after it are dropped first
    and the clock goes on where it stopped. `limit_seconds`: when the run ends even if steps are left; 0: no
    limit. `in_python`: the run was given what no command line can give, so that only Python can go on with it.
    While the context lasts, SIGTERM and Ctrl-C end the run after its step: see `checkpoint`. Raises RunError where
    the folder cannot be written or a logger that is asked for is not there.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        run: RunSettings,
        start_step: int = 0,
        unit: str = "step",
        headline: Sequence[str] = (names.REWARD, names.KL),
        limit_seconds: float = 0.0,
        in_python: bool = False,
    ) -> None:
        self.folder, self.run, self.in_python = folder, run, in_python
        if run.wandb:
            check_wandb(run.wandb)
        past = _past_rows(folder, start_step)
        began = time.perf_counter()
        # A resumed run's clock goes on from the last row's.
        self._zero = began - (float(past[-1].get(names.TIME, 0.0)) if past else 0.0)
        self.state = RunState(title, unit, total_steps, start_step, limit_seconds, tuple(headline), began)
        for row in past:
            self.state.remember({name: v for name, v in row.items() if isinstance(v, int | float)})
        self._view = _view_for(self.state)
        self._loggers: list[TensorBoard | WeightsAndBiases] = []
        self._not_finite: set[str] = set()
        self._unknown: set[str] = set()
        self._signals = StopSignals(self._view.alert)
        self._watchdog = Watchdog(self.state, folder, 60 * run.watchdog, run.watchdog_stop, self._view.alert)

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
        self._signals.__enter__()
        self._watchdog.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.__exit__()
        self._signals.__exit__()
        self._view.stop()
        self._close(failed=kind is not None)

    def _close(self, failed: bool) -> None:
        for logger in self._loggers:
            logger.close(failed)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's numbers, and show them. One that is not finite is null there, and counted."""
        now = time.perf_counter()
        numbers = {name: float(value) for name, value in values.items()}
        row = {names.TIME: round(now - self._zero, 3), **numbers}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            row[names.NOT_FINITE] = len(bad)
        append_jsonl(self.folder / "metrics.jsonl", [{names.STEP: step, **row}])
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

    def checkpoint(self, save: Callable[[], Path], due: bool) -> None:
        """At the end of a step: save it if it is due or a signal has come.

        Raises StoppedBySignalError after a signal.
        """
        saved = due or self._signals.received is not None
        if saved:
            self.phase("checkpoint")
            for name in ("metrics.jsonl", "samples.jsonl"):
                sync_file(self.folder / name)  # a checkpoint must not outlive the rows of its steps
            save()
            self._check_keep_best()
        # A signal that comes here, after a step that was not saved, waits for the next one.
        stop = self._signals.received
        if saved and stop is not None:
            raise StoppedBySignalError(self._how_to_go_on(stop), stop)

    def _check_keep_best(self) -> None:
        """Say it once where the metric that run.keep_best names is none of the run's."""
        name = self.run.keep_best
        if name and name not in self.state.latest and name not in self._unknown:
            self._unknown.add(name)
            hint = did_you_mean(name, self.state.latest, otherwise="no checkpoint is kept for it so far")
            self.note(f"run.keep_best = {name}: no step has had this metric; {hint}")

    def _how_to_go_on(self, stop: Signals) -> str:
        state, command = (
            self.state,
            f"proxlm {self.state.title} {shlex.quote(str(self.folder / 'config.toml'))}",
        )
        go_on = "the same call and run.resume = true" if self.in_python else f"{command} --resume"
        return f"stopped by {WORDS[stop]} after step {state.step} of {state.total_steps}, saved; go on with: {go_on}"

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
