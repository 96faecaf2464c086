"""Call a reward function with a time limit, whether it is sync or async, and say what came of it."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from proxlm.errors import RewardError
from proxlm.threads import SLICE_SECONDS, Worker

# What an async function has to react to being cancelled before its thread is given up as well.
GRACE_SECONDS = 0.5
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Outcome:
    """What came of one call: a value, or the exception it raised, or nothing within the time limit."""

    value: Any = None
    error: BaseException | None = None
    timed_out: bool = False


class TimedCaller:
    """Calls functions one at a time in a daemon thread, which cannot keep the process from ending.

    The thread and its event loop live from call to call, so that what an async function keeps open (an HTTP
    client for instance) stays usable, and a loop that runs in the caller's thread is no hindrance. After a
    call that hangs the thread is given up and the next call gets a new one.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def call(self, function: Callable[[], Any], timeout: float) -> Outcome:
        """Call `function()`, await what it returns if that can be awaited; `timeout` in seconds.

        A function inside C code that holds the interpreter's lock cannot be timed out.
        """
        timeout = min(timeout, threading.TIMEOUT_MAX - GRACE_SECONDS)
        if self._worker is None:
            self._runner = asyncio.Runner()
            self._worker = Worker("proxlm-reward", inside=self._runner)  # closes the loop with the thread
        reply: SimpleQueue[Outcome] = SimpleQueue()
        runner = self._runner  # not self, which would live as long as a job that hangs
        self._worker.do(lambda: reply.put(_run(function, timeout, runner)))
        until = time.monotonic() + timeout + GRACE_SECONDS
        while (left := until - time.monotonic()) > 0:
            # In slices, for a signal that the system gives to another thread does not end this wait.
            with suppress(Empty):
                return reply.get(timeout=min(left, SLICE_SECONDS))
        self._worker.give_up()
        self._worker = None
        return Outcome(timed_out=True)


def _run(function: Callable[[], Any], timeout: float, runner: asyncio.Runner) -> Outcome:
    started = time.monotonic()
    try:
        value = function()
        if inspect.isawaitable(value):
            return runner.run(_wait_for(value, timeout - (time.monotonic() - started)))
    except BaseException as error:  # sys.exit() in a reward function too must reach the caller
        return Outcome(error=error)
    return Outcome(value)


async def _wait_for(awaitable: Any, timeout: float) -> Outcome:
    """Not asyncio.wait_for: a TimeoutError of the function's own is not our time limit."""
    task = asyncio.ensure_future(awaitable)
    # Looked at, or asyncio would print it, also where the thread is given up.
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


def describe_error(error: BaseException, file: str = "") -> str:
    """One line: type, message, and the place, preferring a line of `file`, where the reward is defined."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    message = " ".join(str(error).split())
    if len(message) > LONGEST_MESSAGE:
        message = message[: LONGEST_MESSAGE - 3] + "..."
    if isinstance(error, RewardError):
        return message
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if f.filename == file] or frames
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"
