"""A worker thread that runs one job after another, concurrently with the main thread."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import SimpleQueue

# Code that waits for a thread waits in slices of this many seconds: a signal that is delivered to another thread does
# not end a wait of the main thread.
SLICE_SECONDS = 0.25

Job = Callable[[], object]


class Worker:
    """Runs jobs one after another in one daemon thread, which does not keep the process from ending.

    All jobs run in the same thread, because the process of an isolated reward ends with the thread that started it,
    and a function may keep resources that belong to its thread. The thread ends when there is no reference to the
    worker any more and its jobs are done. A job that hangs keeps it alive unless the worker is abandoned.

    Args:
        name: The thread's name.
        inside: A context that is entered in the thread and lasts as long as the thread.
    """

    def __init__(self, name: str, inside: AbstractContextManager[object] | None = None) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_serve, args=(self._jobs, inside or nullcontext()), name=name, daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    def do(self, job: Job) -> None:
        """Call job() after the jobs before it. It must not raise: the thread would end without doing later jobs."""
        self._jobs.put(job)

    def give_up(self) -> None:
        """Abandon the worker: a job that hangs ends at its next bytecode, and so does not occupy a core for ever."""
        # The number of a thread that has ended may belong to another thread by now.
        if self._thread.ident is not None and self._thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
            )


def _serve(jobs: SimpleQueue[Job | None], inside: AbstractContextManager[object]) -> None:
    with suppress(SystemExit), inside:  # SystemExit: the worker was abandoned
        while (job := jobs.get()) is not None:
            job()
            del job  # else it would keep the last job's objects alive until the next one
