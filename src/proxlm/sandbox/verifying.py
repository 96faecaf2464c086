"""The process of checks that may hang (verifier.py): it answers one question after another until its socket closes.

The kernel ends it when a question has used its CPU time. That works in whatever code, and without the run: if that is
killed, the process ends with its question.
"""

from __future__ import annotations

import importlib
import resource
import signal
import sys
from typing import Any

from proxlm.sandbox.wire import read_frame, write_frame
from proxlm.text import reason_of


def main() -> None:
    """Serve with the arguments module, socket's number, seconds, MiB."""
    module, end, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    try:
        check = importlib.import_module(module).check
    except Exception as error:
        write_frame(end, {"refused": reason_of(error)})
        return
    _limit(int(sys.argv[4]) << 20)
    write_frame(end, {"ready": True})
    while True:
        try:
            question = read_frame(end, 1 << 62)
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = _answer(check, question)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        write_frame(end, reply)


def _answer(check: Any, question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": check(**question)}
    except MemoryError:
        return {"problem": "needed too much memory", "last": True}
    except Exception as error:  # whatever a library raises on what a model wrote
        return {"problem": reason_of(error)}


def _limit(more: int) -> None:
    """Let the process have `more` bytes beyond the address space it has now, and write no files."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    for kind, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + more),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        highest = resource.getrlimit(kind)[1]
        least = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(kind, (least, highest))
