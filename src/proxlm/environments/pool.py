"""Calls of environments beside the rollout, each with a time limit: plain functions and coroutines."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from proxlm.threads import Worker


class CallResult(NamedTuple):
    """The result of the call `key`: a value, or an error."""

    key: int
    value: Any
    error: BaseException | None


class EnvironmentPool:
    """Runs calls of environments and returns their results in the order in which they finish.

    Each key has a thread of its own for all its calls, so one that hangs holds up no other, nor the end of the
    program; coroutines share an event loop. A call that is not done in time counts as failed, and its thread is
    given up; a result that arrives later is ignored.

    Args:
        timeout: seconds a call may take.

    Attributes:
        seconds: how long the newest finished call of each key took.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.seconds: dict[int, float] = {}
        self._done: queue.SimpleQueue[tuple[int, float, CallResult]] = queue.SimpleQueue()
        self._deadlines: dict[int, tuple[int, float]] = {}
        self._workers: dict[int, Worker] = {}
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard = threading.Lock()

    def __len__(self) -> int:
        """How many calls are running."""
        return len(self._deadlines)

    def start(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin function(*arguments); one call at a time per key."""
        self._number += 1
        number = self._number
        self._deadlines[key] = (number, time.monotonic() + self.timeout)

        def run() -> None:
            began, value, error = time.monotonic(), None, None
            try:
                value = function(*arguments)
                if inspect.isawaitable(value):
                    value = asyncio.run_coroutine_threadsafe(_result(value), self._event_loop()).result()
            except BaseException as raised:
                value, error = None, raised
            self._done.put((number, time.monotonic() - began, CallResult(key, value, error)))

        if key not in self._workers:
            self._workers[key] = Worker(f"environment-{key}")
        self._workers[key].do(run)

    def finished(self, wait: float) -> list[CallResult]:
        """The results since the last call of this method.

        Args:
            wait: seconds to wait for the first one; it never waits beyond the next time limit.
        """
        found: list[CallResult] = []
        limit = time.monotonic() + wait
        while self._deadlines:
            nearest = min(at for _, at in self._deadlines.values())
            patience = 0.0 if found else max(0.0, min(limit, nearest) - time.monotonic())
            try:
                number, seconds, result = self._done.get(timeout=patience)
            except queue.Empty:
                break
            if self._deadlines.get(result.key, (0, 0.0))[0] == number:  # else it arrived after its time limit
                del self._deadlines[result.key]
                self.seconds[result.key] = seconds
                found.append(result)
        return found + self._overdue()

    def _overdue(self) -> list[CallResult]:
        now = time.monotonic()
        late = [key for key, (_, at) in self._deadlines.items() if at <= now]
        for key in late:
            del self._deadlines[key]
            self.seconds[key] = self.timeout
            self._workers.pop(key).give_up()
        message = f"no answer within {self.timeout:g} seconds"
        return [CallResult(key, None, TimeoutError(message)) for key in late]

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._runner = threading.Thread(
                    target=self._loop.run_forever, name="environments", daemon=True
                )
                self._runner.start()
            return self._loop

    def close(self) -> None:
        """Cancel coroutines that hang and stop their loop; threads that hang are abandoned."""
        self._workers.clear()
        if self._loop is None:
            return
        self._loop.call_soon_threadsafe(_cancel_and_stop, self._loop)
        self._runner.join(timeout=1.0)
        if not self._runner.is_alive():
            self._loop.close()


def _cancel_and_stop(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    # One more iteration, so that the cancelled ones can finish.
    loop.call_soon(loop.stop)


async def _result(value: Any) -> Any:
    return await value
