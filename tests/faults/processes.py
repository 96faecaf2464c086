"""A command in a process of its own, forked off this one, that stops at a place until it is released."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proxlm.__main__ import main


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    output: str
    errors: str


def run_until(
    arguments: Sequence[str],
    place: str,
    then: Callable[[int], object],
    *,
    call: int = 1,
    before: Callable[[], object] | None = None,
) -> Ended:
    """Run a command; when it calls `place` for the `call`th time, do something to its process and let it go on.

    Args:
        arguments: Of the command line.
        place: A function, as "module:name" or "module:class.method".
        then: What is done, with the process's id.
        call: Which call of the place.
        before: Called in the process before the command.
    """
    there, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for descriptor, name in ((1, "output.txt"), (2, "errors.txt")):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, descriptor)
                os.close(file)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
            _wait_at(place, call, there[1], go_on[0])
            if before is not None:
                before()
            status = main(arguments)
            with suppress(OSError):
                sys.stdout.flush()
        finally:
            os._exit(status)
    os.close(there[1])
    assert os.read(there[0], 1) == b"!", f"{place} was not reached: {Path('errors.txt').read_text()}"
    then(child)
    with suppress(BrokenPipeError):
        os.write(go_on[1], b"!")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for descriptor in (there[0], *go_on):
        os.close(descriptor)
    return Ended(status, Path("output.txt").read_text(), Path("errors.txt").read_text())


def _wait_at(place: str, call: int, there: int, go_on: int) -> None:
    """Make the function say that it is called, and wait before it begins. A signal meanwhile is handled at once."""
    module, _, name = place.partition(":")
    owner, (*path, last) = importlib.import_module(module), name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def waiting(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == call:
            os.write(there, b"!")
            os.read(go_on, 1)
        return real(*arguments, **more)

    setattr(owner, last, waiting)
