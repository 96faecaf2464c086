"""Calls of a reward function, sync or async, with a time limit."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from proxlm.threads import SLICE_SECONDS, Worker
from proxlm.user_code import without_caller

# How long an async function may take to react to being cancelled, before its thread is abandoned too.
GRACE_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """The result of one call: a value, or the exception it raised, or nothing within the time limit."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False


class TimedCaller:
    """Calls functions one at a time in a daemon thread, which cannot keep the process from ending.

    The thread and its event loop are kept between calls, so that what an async function keeps open (an HTTP
    client, for instance) stays usable, and an event loop that runs in the caller's thread does not interfere. After
    a call that hangs, the thread is abandoned and the next call gets a new one.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def call(self, function: Callable[[], Any], timeout: float) -> Outcome:
        """Call `function()` and await the result if it is awaitable.

        Args:
            function: The function. While it runs C code that holds the interpreter's lock, it cannot be timed out.
            timeout: Seconds.
        """
        timeout = min(timeout, threading.TIMEOUT_MAX - GRACE_SECONDS)
        if self._worker is None:
            self._runner = asyncio.Runner()
            self._worker = Worker("proxlm-reward", inside=self._runner)  # closes the loop with the thread
        reply: SimpleQueue[Outcome] = SimpleQueue()
        runner = self._runner  # not self, which a job that hangs would keep alive
        self._worker.do(lambda: reply.put(_run(function, timeout, runner)))
        until = time.monotonic() + timeout + GRACE_SECONDS
        try:
            while (left := until - time.monotonic()) > 0:
                # In slices: a signal that is delivered to another thread does not end this wait.
                with suppress(Empty):
                    return reply.get(timeout=min(left, SLICE_SECONDS))
        except BaseException:  # Ctrl-C: nobody wants the result any more, so nothing goes on asking for it
            self._abandon()
            raise
        self._abandon()
        return Outcome(timed_out=True)

    def _abandon(self) -> None:
        if self._worker is not None:
            self._worker.give_up()
        self._worker = None


def _run(function: Callable[[], Any], timeout: float, runner: asyncio.Runner) -> Outcome:
    started = time.monotonic()
    try:
        value = function()
        if inspect.isawaitable(value):
            return runner.run(_wait_for(value, timeout - (time.monotonic() - started)))
    except BaseException as error:  # KeyboardInterrupt and sys.exit() too must reach the caller
        return Outcome(error=without_caller(error))
    return Outcome(value)


async def _wait_for(awaitable: Any, timeout: float) -> Outcome:
    """Like asyncio.wait_for, but a TimeoutError that the function raises itself is not taken for our time limit."""
    task = asyncio.ensure_future(awaitable)
    # The exception is retrieved, or asyncio would print it; also if the thread is abandoned.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    done, _ = await asyncio.wait({task}, timeout=max(timeout, 0))
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE_SECONDS / 2)
        return Outcome(timed_out=True)
    if task.cancelled():
        return Outcome(error=asyncio.CancelledError("the function cancelled itself"))
    error = task.exception()
    return Outcome(error=error) if error is not None else Outcome(task.result())
