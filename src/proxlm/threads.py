"""A thread that lasts from job to job, for what runs beside the main thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

# Whoever waits for a thread waits in slices of so many seconds, for a signal that the system gives to another thread
# does not end a wait of the main one.
SLICE_SECONDS = 0.25


class Worker:
    """Does what it is given, one job after another, in a daemon thread, which cannot keep the process from ending.

    One thread for all jobs: the process of an isolated reward ends with the thread that started it. It ends when
    nobody holds the worker any more and what it was given is done; one that hangs in a job never does.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def do(self, job: Callable[[], object]) -> None:
        """Call job() when those before it have ended. It must not raise, or the thread ends and leaves later ones."""
        self._jobs.put(job)


def _serve(jobs: SimpleQueue[Callable[[], object] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or it would hold what the last job made until the next
