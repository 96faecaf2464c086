"""The process that a reward runs in with reward.isolate.

It reads messages from a socket and answers each one, until the other end closes. A message is its length in four
bytes, then JSON: first the settings of the reward, then for each call a term's number and the completions. Nothing
is pickled.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import json
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO, cast

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.errors import UserError
from proxlm.rewards.call import Outcome
from proxlm.rewards.resolve import Term, resolve_terms
from proxlm.rewards.result import UnusableResultError, parts_of
from proxlm.runlog.output import GuardedStream
from proxlm.types import Completion
from proxlm.user_code import without_caller

PR_SET_PDEATHSIG = 1
_LARGEST_PIECE = 1 << 20  # a size that is no size must not be allocated


def send(end: socket.socket, message: dict[str, Any]) -> None:
    """Send one message. Raises OSError if the other end is closed, TypeError for what JSON cannot hold."""
    data = json.dumps(message).encode()
    end.sendall(len(data).to_bytes(4, "big") + data)


def receive(end: socket.socket) -> dict[str, Any] | None:
    """The next message; None if the other end is closed.

    Raises:
        TimeoutError: The socket's time limit is over.
        ValueError: What came is no message.
    """
    size = _exactly(end, 4)
    data = size and _exactly(end, int.from_bytes(size, "big"))
    if not data:
        return None
    try:
        message = json.loads(data)
    except RecursionError as error:
        raise ValueError("a message that is nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError(f"a message that is a {type(message).__name__}")  # noqa: TRY004
    return message


def _exactly(end: socket.socket, count: int) -> bytes:
    """The next `count` bytes; fewer mean that the other end was closed, and are given as none."""
    pieces, left = [], count
    while left:
        piece = end.recv(min(left, _LARGEST_PIECE))
        if not piece:
            return b""
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def serve(end: socket.socket) -> None:
    """Answer messages until the other end closes."""
    first = receive(end)
    if first is None:
        return
    try:
        terms = resolve_terms(_settings(first["reward"]), None)
    except UserError as error:
        send(end, {"refused": str(error)})
        return
    if first["memory_gb"]:
        _limit_memory(first["memory_gb"])
    send(end, {"ready": True})
    with asyncio.Runner() as runner:
        while (message := receive(end)) is not None:
            completions = [Completion(**fields) for fields in message["completions"]]
            reply = answer(terms[message["term"]], completions, runner)
            send(end, reply)
            if reply.get("last"):
                return


def answer(term: Term, completions: Sequence[Completion], runner: asyncio.Runner) -> dict[str, Any]:
    """A term's reply: its parts, a problem, or that it asked to stop.

    last: this process ends, because its memory is used up.
    """
    try:
        value = term.function(list(completions))
        outcome = Outcome(runner.run(_result(value)) if inspect.isawaitable(value) else value)
    except BaseException as error:  # sys.exit() in a reward must not end the process without a reply
        outcome = Outcome(error=without_caller(error))
    try:
        parts = parts_of(outcome, term.file, completions)
    except UnusableResultError as error:
        return {"problem": str(error), "last": isinstance(outcome.error, MemoryError)}
    except KeyboardInterrupt:
        return {"interrupted": True}
    return {"parts": {name: asdict(part) for name, part in parts.items()}}


async def _result(value: Any) -> Any:
    return await value


def _settings(fields: dict[str, Any]) -> RewardSettings:
    terms = {name: RewardTerm(**term) for name, term in fields["terms"].items()}
    return RewardSettings(**{**fields, "terms": terms})


def _limit_memory(more: float) -> None:
    """Limit the process to `more` GiB beyond the address space it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + int(more * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    """Serve the socket whose number is the process's argument."""
    if sys.platform == "linux":
        # A reward that hangs ends with the run, even if the run is killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Before the user's file is run: what it prints goes where the run prints.
    sys.stdout, sys.stderr = (cast(TextIO, GuardedStream(stream)) for stream in (sys.stdout, sys.stderr))
    serve(socket.socket(fileno=int(sys.argv[1])))
