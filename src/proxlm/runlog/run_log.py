"""What a run records and shows while it goes on. Rows, loggers, views, signals and watchdog have their own files."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxlm.config import RunSettings
from proxlm.errors import StoppedBySignalError
from proxlm.runlog import metric_names as names
from proxlm.runlog.interrupt import StopSignals, stopped_message
from proxlm.runlog.loggers import Loggers, check_loggers
from proxlm.runlog.rows import RowCounts, RowFiles
from proxlm.runlog.state import RunState
from proxlm.runlog.stop_request import forget, is_requested
from proxlm.runlog.view import view_for
from proxlm.runlog.watchdog import Watchdog


class RunLog:
    """Records a run and shows it; a context manager.

    While the context lasts, SIGTERM, SIGHUP, Ctrl-C and a closed output end the run after its step (see
    `checkpoint`), and the watchdog reports a run that does not move.

    Args:
        folder: the run's folder.
        job: the job's name.
        total_steps: how many steps the run has.
        run: the [run] section of its settings.
        start_step: the step of the checkpoint that the run is resumed from; later rows are dropped, and the clock
            continues from the last row's. 0: a new run.
        unit: the word for a step.
        headline: metrics whose whole history is shown.
        limit_seconds: when the run ends even if steps are left; 0: no limit.
        in_python: the run has arguments that the command line cannot give, so that only Python can resume it.
        on_phase: called with the name of each part of a step when it begins.

    Raises:
        RunError: the folder cannot be written, or a logger that is asked for is not installed.
    """

    def __init__(
        self,
        folder: Path,
        job: str,
        total_steps: int,
        run: RunSettings,
        start_step: int = 0,
        unit: str = "step",
        headline: Sequence[str] = (names.REWARD, names.TEACHER_KL, names.KL),
        limit_seconds: float = 0.0,
        in_python: bool = False,
        on_phase: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.folder, self.run, self._on_phase = folder, run, on_phase
        check_loggers(run)
        self._rows = RowFiles(folder, start_step)
        past = self._rows.read_metrics()
        began = time.perf_counter()
        self._zero = began - (float(past[-1].get(names.TIME, 0.0)) if past else 0.0)
        self.state = RunState(job, unit, total_steps, start_step, limit_seconds, tuple(headline), began)
        for row in past:
            self.state.remember({name: v for name, v in row.items() if isinstance(v, int | float)})
        self._view = view_for(self.state)
        self._loggers = Loggers(folder, run, start_step)
        self._signals = StopSignals(
            lambda stop: stopped_message(stop, self.state, folder, in_python), self._view.alert
        )
        self._watchdog = Watchdog(self.state, folder, 60 * run.watchdog, run.watchdog_stop, self._view.alert)
        self._context = ExitStack()
        self._reported_not_finite: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as context:  # what has been entered is left again if something cannot be
            context.enter_context(self._loggers)
            self._view.start()
            context.callback(self._view.stop)
            context.enter_context(self._signals)
            context.enter_context(self._watchdog)
            self._context = context.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record one step's numbers, and show them. One that is not finite is null in its row, and counted."""
        now = time.perf_counter()
        numbers = {name: float(value) for name, value in values.items()}
        row = {names.TIME: round(now - self._zero, 3), **numbers}
        not_finite = [name for name, value in numbers.items() if not math.isfinite(value)]
        if not_finite:
            row[names.NOT_FINITE] = len(not_finite)
        self._rows.add_metrics(step, row)
        self._loggers.log(step, {name: value for name, value in row.items() if name not in not_finite})
        self.state.finish_step(step, numbers, now)
        for name in not_finite:
            if name not in self._reported_not_finite:
                self._reported_not_finite.add(name)
                self.note(f"{self.state.unit} {step}: {name} is not a finite number: {numbers[name]}")
        self._view.step_done(now)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record sampled texts of a step in samples.jsonl; nothing if there are none."""
        self._rows.add_samples(step, rows)

    @property
    def row_counts(self) -> RowCounts:
        """How many rows metrics.jsonl and samples.jsonl hold."""
        return self._rows.counts

    @property
    def rows_sha256(self) -> dict[str, str]:
        """SHA-256 of the rows that metrics.jsonl and samples.jsonl hold."""
        return self._rows.sha256

    def stopped_by(self) -> str:
        """Who wants the run to end after this step, as it would after its last one; empty: nobody.

        That is Ctrl-C or `proxlm stop`; other signals leave no time for what belongs to an end (`checkpoint`).
        """
        if self._signals.received == signal.SIGINT:
            return "Ctrl-C"
        if is_requested(self.folder):
            forget(self.folder)
            return "proxlm stop"
        return ""

    def checkpoint(self, save: Callable[[], Path], due: bool) -> None:
        """At the end of a step: save a checkpoint if it is due or a signal has come, which ends the run unless it is
        Ctrl-C.

        Args:
            save: writes the checkpoint and returns its folder.
            due: whether one is to be saved in any case.

        Raises:
            StoppedBySignalError: a signal has come, and the step is saved.
        """
        saved = due or self._signals.received is not None
        if saved:
            self.phase("checkpoint")
            self._rows.sync()  # a checkpoint must not outlive the rows of its steps
            save()
        # A signal that comes here, after a step that was not saved, waits for the next one.
        stop = self._signals.received
        if saved and stop not in (None, signal.SIGINT):
            raise StoppedBySignalError(self._signals.message(stop), stop)

    def phase(self, name: str) -> None:
        """Show that a part of the step begins: generate, score, prepare, update, validate ..."""
        self.state.enter(name)
        self._on_phase(name)

    def progress(self, done: int, total: int) -> None:
        """Show how far the phase is."""
        self.state.phase_done, self.state.phase_total = done, total

    def note(self, text: str) -> None:
        """Show a line: above the live view, or between the lines of the plain log."""
        self._view.note(text)


class NoLog:
    """Stands in for a run's log on the ranks that record and show nothing; on_phase: see `RunLog`."""

    def __init__(self, on_phase: Callable[[str], None] = lambda _name: None) -> None:
        self._on_phase = on_phase

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def phase(self, name: str) -> None:
        self._on_phase(name)

    def progress(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass
