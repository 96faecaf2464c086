"""Says where a run is stuck: phase, step and sample, with the stacks of all threads in the run's folder."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from proxlm.runlog.state import RunState
from proxlm.runlog.text import duration
from proxlm.text import system_reason

# What a supervisor may take as "start it again with --resume": the system's code for a temporary failure.
STATUS = 75
SHOW_CURSOR = b"\x1b[?25h"


class Watchdog:
    """Looks whether a run's step, phase or progress changes within `limit` seconds. A context manager.

    `tell` gets a line when it does not, and when it moves again; it is called in a thread of its own, and must not
    wait for what the run may hold. stop: end the process then, with status 75; the newest checkpoint is on the disk,
    and a thread that hangs can save no other.
    """

    def __init__(
        self, state: RunState, folder: Path, limit: float, stop: bool, tell: Callable[[str], None]
    ) -> None:
        self.state, self.folder, self.limit, self.stop, self.tell = state, folder, limit, stop, tell
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
        seen, stuck, told = self._place(), 0.0, False
        pause = min(1.0, self.limit / 10)
        looked = time.monotonic()
        while not self._ended.wait(pause):
            place, now = self._place(), time.monotonic()
            # No longer than this thread itself could have looked: a process that was suspended is not stuck.
            stuck, looked = stuck + min(now - looked, 2 * pause), now
            if place != seen:
                if told:
                    self.tell(f"it moves again: {self._words()}")
                seen, stuck, told = place, 0.0, False
            elif not told and stuck > self.limit:
                self._report(stuck)
                told = True

    def _place(self) -> tuple[int, str, int, int]:
        state = self.state
        return state.step, state.phase, state.phase_done, state.phase_total

    def _words(self) -> str:
        """ "step 7 of 12, generate 3/64": the step that is going on, and of its phase what is done."""
        done, phase, part, parts = self._place()
        doing = f", {phase}" if phase else ""
        return f"{self.state.unit} {done + 1} of {self.state.total_steps}{doing}" + (
            f" {part}/{parts}" if parts else ""
        )

    def _report(self, seconds: float) -> None:
        path = self.folder / f"stuck-step-{self.state.step + 1:08d}.txt"
        line = f"stuck: {self._words()} has not moved for {duration(seconds)}"
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(line + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            line += f"; what each thread does is in {path}"
        except OSError as error:
            line += f"; what each thread does cannot be written to {path}: {system_reason(error)}"
        if not self.stop:
            self.tell(line)
            return
        if os.isatty(1):
            os.write(1, SHOW_CURSOR)
        os.write(2, f"proxlm: {line}; ended, as run.watchdog_stop has it; go on with --resume\n".encode())
        os._exit(STATUS)
