"""Checks that may hang, run in a process of their own that is killed and started again: the run's side.

The checks are ours, and what they read is a model's: a verifier of mathematics that simplifies for ever, a pattern
that backtracks. A timer inside this process could not end code in C that holds the interpreter's lock, and signals
reach the main thread alone; another process can always be ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from proxlm.errors import RewardError
from proxlm.sandbox.wire import read_frame, write_frame
from proxlm.threads import SLICE_SECONDS

_START_SECONDS = 120.0
# The kernel ends a check by the CPU time it used, so that a busy machine changes no reward. One that is stopped uses
# none, and is given up after so many times its limit.
_PATIENCE = 20.0
_LEAST_MEMORY_MB = 64
_FROM = "import sys; sys.path[:] = {path!r}; from proxlm.sandbox.verifying import main; main()"


class Verifier:
    """Calls `check(**question)` of a module in another process, one question at a time; threads may share it.

    The process is started by the first question, and again after one that ended it. Ctrl-C does not reach it. It ends
    with this one.

    Args:
        module: The module with the function `check`: its arguments and its result are JSON.
        seconds: Limit of one question, in seconds of CPU time.
        memory_mb: What a question may need beyond what the process has at its start, in MiB.

    Raises:
        ValueError: An argument is impossible ("ARGUMENT: what is wrong").
    """

    def __init__(self, module: str, seconds: float, memory_mb: int) -> None:
        if not 0 < seconds <= 3600:
            raise ValueError(f"seconds = {seconds:g}: must be more than 0, and at most 3600")
        if memory_mb < _LEAST_MEMORY_MB:
            raise ValueError(f"memory_mb = {memory_mb}: must be at least {_LEAST_MEMORY_MB}")
        self._module, self._seconds, self._memory_mb = module, seconds, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None
        self._lock = threading.Lock()
        self.starts = 0

    def check(self, question: dict[str, Any]) -> Any:
        """The result for one question.

        Raises:
            RewardError: It took too long, needed too much memory, raised, or ended its process.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._stop()  # ended while nothing was asked
            try:
                reply = self._ask(self._end or self._start(), question, self._seconds * _PATIENCE)
            except RewardError:
                raise
            except TimeoutError:
                self._stop()
                raise RewardError(f"took longer than {self._seconds * _PATIENCE:g} s") from None
            except (OSError, EOFError, ValueError):
                raise RewardError(self._stop()) from None
            except BaseException:
                self._stop()  # given up between question and reply: the next one must not get this reply
                raise
            if reply.get("last"):
                self._stop()
        if "problem" in reply:
            raise RewardError(reply["problem"])
        return reply["result"]

    def _ask(self, end: socket.socket, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        write_frame(end.fileno(), question)
        return self._reply(end, seconds)

    def _reply(self, end: socket.socket, seconds: float) -> dict[str, Any]:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        until = time.monotonic() + seconds
        # In slices: a signal that is delivered to another thread does not end this wait, nor does giving up a thread.
        while not poll.poll(SLICE_SECONDS * 1000):
            if time.monotonic() >= until:
                raise TimeoutError
        reply: dict[str, Any] = read_frame(end.fileno())
        return reply

    def _start(self) -> socket.socket:
        mine, its = socket.socketpair()
        path = [str(Path(__file__).parents[2]), *(one for one in sys.path if one)]
        code = _FROM.format(path=path)
        arguments = [self._module, str(its.fileno()), str(self._seconds), str(self._memory_mb)]
        # No environment variable of ours reaches it; the hash seed makes the order of sets reproducible.
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c", code, *arguments],
            env={"PYTHONHASHSEED": "0"},
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        its.close()
        self._end, self.starts = mine, self.starts + 1
        weakref.finalize(self, _end_process, self._process, mine, os.getpid())
        try:
            reply = self._reply(mine, _START_SECONDS)
        except (OSError, EOFError, ValueError):
            reply = {"refused": self._stop()}
        if "refused" in reply:
            self._stop()
            raise RewardError(f"the process of {self._module} did not start: {reply['refused']}")
        return mine

    def _stop(self) -> str:
        """End the process if it still runs; returns how it ended."""
        process, self._process = self._process, None
        if self._end is not None:
            self._end.close()
            self._end = None
        if process is None:
            return "its process had ended"
        status = ended(process)
        if status == -signal.SIGPROF:
            return f"took longer than {self._seconds:g} s; its process was ended"
        return f"ended its process ({f'status {status}' if status >= 0 else signal.Signals(-status).name})"


def ended(process: subprocess.Popen[bytes]) -> int:
    """The status of a process that ends now, or is killed."""
    try:
        return process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _end_process(process: subprocess.Popen[bytes], end: socket.socket, owner: int) -> None:
    end.close()
    if os.getpid() == owner and process.poll() is None:  # not in a fork of the run
        process.kill()
        process.wait()
