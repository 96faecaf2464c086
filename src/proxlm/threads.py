"""A thread that lasts from job to job, for what runs beside the main thread."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import SimpleQueue

# Whoever waits for a thread waits in slices of so many seconds, for a signal that the system gives to another thread
# does not end a wait of the main one.
SLICE_SECONDS = 0.25

Job = Callable[[], object]


class Worker:
    """Does what it is given, one job after another, in a daemon thread, which cannot keep the process from ending.

    One thread for all jobs: the process of an isolated reward ends with the thread that started it, and what a
    function keeps open may be of its thread. It ends when nobody holds the worker any more and what it was given is
    done; one that hangs in a job never does, unless it is given up. inside: a context that lasts as long as that.
    """

    def __init__(self, name: str, inside: AbstractContextManager[object] | None = None) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        arguments = self._jobs, inside or nullcontext()
        self._thread = threading.Thread(target=_serve, args=arguments, name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def do(self, job: Job) -> None:
        """Call job() when those before it have ended. It must not raise, or the thread ends and leaves later ones."""
        self._jobs.put(job)

    def give_up(self) -> None:
        """End the job that hangs at its next bytecode, or an endless loop burns a core. No other job may follow."""
        if (
            self._thread.ident is not None and self._thread.is_alive()
        ):  # else its number may be another one's by now
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
            )


def _serve(jobs: SimpleQueue[Job | None], inside: AbstractContextManager[object]) -> None:
    with suppress(SystemExit), inside:  # of a worker that was given up
        while (job := jobs.get()) is not None:
            job()
            del job  # or it would hold what the last job made until the next
