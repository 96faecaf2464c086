"""A reward in a separate process, which is killed if it hangs, restarted if it dies, and limited in memory."""

from __future__ import annotations

import logging
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from proxlm.config.schema import RewardSettings
from proxlm.errors import RewardError
from proxlm.rewards.result import Component, UnusableResultError
from proxlm.rewards.worker import receive, send
from proxlm.sandbox.verifier import ended
from proxlm.text import reason_of, system_reason
from proxlm.threads import SLICE_SECONDS
from proxlm.types import Completion

log = logging.getLogger(__name__)
# The time limit for importing; the reward's own time limit is for its calls.
START_SECONDS = 120.0
_NO_ANSWER = "what its process answered is no answer of ours: something else wrote to its socket"
START = "from proxlm.rewards.worker import main; main()"


class IsolatedTerms:
    """The terms of a reward, called in another process. `restarts` counts how often it was started again."""

    def __init__(self, config: RewardSettings) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None
        self.restarts = -1

    def evaluate(self, term: int, completions: Sequence[Completion]) -> dict[str, Component]:
        """The checked components of term number `term` for the completions.

        Raises:
            UnusableResultError: The term failed, took too long, or ended its process.
            RewardError: The process cannot be started.
            KeyboardInterrupt: The term raised that.
        """
        end = self._end or self._start()
        message = {"term": term, "completions": [asdict(c) for c in completions]}
        try:
            send(end, message)
            reply = self._reply(end, self._config.timeout)
        except TypeError as error:
            reason = f"a prompt's fields cannot be sent to another process: {reason_of(error)}"
            raise UnusableResultError(reason) from None
        except ValueError:
            raise UnusableResultError(f"{_NO_ANSWER}; {self._stop()}") from None
        except OSError as error:  # among them the time limit
            late = isinstance(error, TimeoutError)
            how = self._stop()
            raise UnusableResultError(
                f"took longer than {self._config.timeout:g} s (reward.timeout); its process was ended"
                if late
                else how
            ) from None
        if reply is None:
            raise UnusableResultError(self._stop())
        if reply.get("last"):
            self._stop()
        if reply.get("interrupted"):
            raise KeyboardInterrupt
        if "problem" in reply:
            raise UnusableResultError(str(reply["problem"]))
        try:
            return components_of(reply, completions)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UnusableResultError(f"{_NO_ANSWER}; {self._stop()}") from None

    def _start(self) -> socket.socket:
        mine, its = socket.socketpair()
        command = [sys.executable, "-c", START, str(its.fileno())]
        # In a session of its own, so that Ctrl-C reaches only the run, which finishes its step first.
        self._process = subprocess.Popen(
            command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
        its.close()
        self._end, self.restarts = mine, self.restarts + 1
        weakref.finalize(self, _end_process, self._process, mine)
        if self.restarts:
            log.warning("the reward's process was started again (%d times so far)", self.restarts)
        try:
            send(mine, {"reward": asdict(self._config), "memory_gb": self._config.memory_gb})
            reply = self._reply(mine, START_SECONDS)
        except (OSError, ValueError) as error:
            reason = system_reason(error) if isinstance(error, OSError) else _NO_ANSWER
            raise RewardError(
                f"reward.isolate: the reward's process did not start: {reason}; {self._stop()}"
            ) from error
        if reply is None or "refused" in reply:
            raise RewardError(f"reward.isolate: {reply['refused'] if reply else self._stop()}")
        return mine

    def _reply(self, end: socket.socket, timeout: float) -> dict[str, Any] | None:
        """The next message. Raises TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout
        # In slices: a signal that is delivered to another thread does not end this wait.
        while not _readable(end, min(SLICE_SECONDS, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise TimeoutError("no answer")
        end.settimeout(timeout)
        return receive(end)

    def _stop(self) -> str:
        """End the process if it still runs; returns how it ended."""
        process, self._process = self._process, None
        if self._end is not None:
            self._end.close()
            self._end = None
        if process is None:
            return "its process had ended"
        status = ended(process)
        how = f"status {status}" if status >= 0 else f"signal {-status}, {signal.Signals(-status).name}"
        return f"ended its process ({how})"


def components_of(reply: dict[str, Any], completions: Sequence[Completion]) -> dict[str, Component]:
    """The components in a worker's reply.

    Raises ValueError, TypeError, KeyError or AttributeError for what no worker replies.
    """
    tokens = sum(len(completion.tokens) for completion in completions)
    return {name: _component(part, len(completions), tokens) for name, part in reply["parts"].items()}


def _component(part: dict[str, Any], rows: int, tokens: int) -> Component:
    values = [float(value) for value in part["values"]]
    per_token = (
        part["per_token"] if part["per_token"] is None else [float(value) for value in part["per_token"]]
    )
    problems = {int(row): str(text) for row, text in part["problems"].items()}
    if len(values) != rows or (per_token is not None and len(per_token) != tokens):
        raise ValueError(f"{len(values)} values for {rows} completions")
    return Component(values, per_token, problems)


def _readable(end: socket.socket, seconds: float) -> bool:
    return bool(select.select([end], [], [], seconds)[0])


def _end_process(process: subprocess.Popen[bytes], end: socket.socket) -> None:
    end.close()
    if process.poll() is None:
        process.kill()
        process.wait()
