"""Reports where a run is stuck: step, phase and sample, with the stacks of all threads in the run's folder."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from proxlm.runlog.output import report_line
from proxlm.runlog.state import RunState
from proxlm.runlog.text import duration
from proxlm.text import system_reason

# What a supervisor may take as "start it again with --resume": the system's code for a temporary failure.
STATUS = 75
SHOW_CURSOR = b"\x1b[?25h"


class Watchdog:
    """Reports a run whose step, phase and progress stay the same for `limit` seconds. A context manager.

    Args:
        state: the run's state.
        folder: the run's folder, where the stacks of all threads are written.
        limit: seconds without a change after which the run counts as stuck; 0: never.
        stop: end the process then, with status 75: the newest checkpoint is on the disk, and a thread that hangs
            cannot save another.
        report: gets a line when the run is stuck, and when it moves again. It is called in the watchdog's thread, and
            must not wait for a lock that the run may hold.
    """

    def __init__(
        self, state: RunState, folder: Path, limit: float, stop: bool, report: Callable[[str], None]
    ) -> None:
        self.state, self.folder, self.limit, self.stop, self.report = state, folder, limit, stop, report
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.limit > 0:
            self._thread = threading.Thread(target=self._watch, name="proxlm-watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        seen, stuck, reported = self._place(), 0.0, False
        pause = min(1.0, max(0.01, self.limit / 10))  # a limit of next to nothing must not occupy a core
        looked = time.monotonic()
        while not self._ended.wait(pause):
            place, now = self._place(), time.monotonic()
            # At most the time between two looks of this thread: a process that was suspended is not stuck.
            stuck, looked = stuck + min(now - looked, 2 * pause), now
            if place != seen:
                if reported:
                    self.report(f"it moves again: {self._position()}")
                seen, stuck, reported = place, 0.0, False
            elif not reported and stuck > self.limit:
                self._report_stuck(stuck)
                reported = True

    def _place(self) -> tuple[int, str, int, int]:
        state = self.state
        return state.step, state.phase, state.phase_done, state.phase_total

    def _position(self) -> str:
        """ "step 7 of 12, generate 3/64": the current step, its phase, and how far that is."""
        done, phase, part, parts = self._place()
        doing = f", {phase}" if phase else ""
        return f"{self.state.unit} {done + 1} of {self.state.total_steps}{doing}" + (
            f" {part}/{parts}" if parts else ""
        )

    def _report_stuck(self, seconds: float) -> None:
        path = self.folder / f"stuck-step-{self.state.step + 1:08d}.txt"
        line = f"stuck: {self._position()} has not moved for {duration(seconds)}"
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(line + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            line += f"; what each thread does is in {path}"
        except OSError as error:
            line += f"; what each thread does cannot be written to {path}: {system_reason(error)}"
        if not self.stop:
            self.report(line)
            return
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        report_line(f"proxlm: {line}; ended, as run.watchdog_stop has it; go on with run.resume")
        os._exit(STATUS)
