"""A table is read once in a process of its own before it is read in this one.

Arrow's readers are written in C++: some damaged files abort the process that reads them, and a file of some hundred
bytes may stand for gigabytes, whatever sizes it names. What the trial survives within its limits, this process
survives as well, as it does the same again. An error that Arrow raises is left to the reader.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from proxlm.data.table_sizes import decoded_size
from proxlm.errors import DataError
from proxlm.system_errors import refused

MOST_MEMORY = 2**31
"""Bytes that reading may need beyond what the process has; Linux enforces it."""
_MOST_SECONDS, _BYTES_A_SECOND = 60, 2**20
# So many times as long by the clock: a slow disk is waited for, a lock that another thread held at the fork is not.
_STANDSTILL = 10
# No honest file holds so much more than its own size. Its rows become objects in memory, of some bytes if empty.
_ODD_RATIO, _ODD_SIZE, _EMPTY_ROW = 1000, 2**30, 128
_NEEDS_MEMORY, _HOLDS_TOO_MUCH, _NOT_TRIED = 3, 4, 5


def try_table(name: str, size: int, batches: Callable[[], Iterable[Any]]) -> None:
    """Read a table in a fork of this process.

    Args:
        name: The file, for errors.
        size: Its bytes.
        batches: Called in the fork: reads the table, batch by batch.

    Raises:
        DataError: The fork was aborted, or needed more memory or time than it may, or the table holds far more than
            its size; or there can be no further process.
    """
    seconds = _MOST_SECONDS + size // _BYTES_A_SECOND
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads. The child starts none, and needs no lock of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            child = os.fork()
        except OSError as error:
            raise DataError(f"{name}: cannot be read in a process of its own: {refused(error)}") from error
    if child == 0:
        _read(size, seconds, batches)
    status = _end_of(child, name)
    problems = {
        _NEEDS_MEMORY: f"reading it takes more than {MOST_MEMORY >> 30} GiB of memory; write it with shorter rows",
        _HOLDS_TOO_MUCH: f"it holds more than {_ODD_RATIO} times its {size} bytes; such a file is not read",
        _NOT_TRIED: "it cannot be tried in a process of its own, within limits of memory and time",
        -signal.SIGXCPU: f"damaged: reading it takes more than {seconds} s",
        -signal.SIGALRM: f"reading it stood still for {_STANDSTILL * seconds} s; copy it to a local disk",
    }
    if status in problems:
        raise DataError(f"{name}: {problems[status]}")
    if status:
        raise DataError(f"{name}: damaged: reading it aborts the process ({signal.Signals(-status).name})")


def _end_of(child: int, name: str) -> int:
    """Wait for the fork; returns its exit status, or −its signal. Raises DataError where nobody can know it."""
    status = None
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError as error:
        status = _NOT_TRIED  # it has ended
        raise DataError(
            f"{name}: cannot be tried in a process of its own, because this one ignores SIGCHLD; set it to"
            " signal.SIG_DFL first"
        ) from error
    finally:
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return status


def _read(size: int, seconds: int, batches: Callable[[], Iterable[Any]]) -> NoReturn:
    """In the fork: read it all within the limits."""
    status = _NOT_TRIED
    try:
        gc.disable()  # it would end what belongs to the process that was forked
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # of these the other process takes care
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C++ says when it aborts
        _limit(seconds)
        status = _HOLDS_TOO_MUCH if _holds_too_much(size, batches) else 0
    except MemoryError:
        status = _NEEDS_MEMORY
    finally:
        os._exit(status)


def _holds_too_much(size: int, batches: Callable[[], Iterable[Any]]) -> bool:
    held = 0
    try:
        for batch in batches():
            held += decoded_size(batch) + len(batch) * _EMPTY_ROW
            if held > max(_ODD_SIZE, _ODD_RATIO * size):
                return True
    except MemoryError:
        raise
    except Exception:  # the reader meets it again, and says what it is
        pass
    return False


def _limit(seconds: int) -> None:
    import pyarrow as pa

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _lower(resource.RLIMIT_CPU, seconds)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_STANDSTILL * seconds)
    if sys.platform == "linux":
        pa.set_memory_pool(pa.system_memory_pool())  # others take address space in advance
        with open("/proc/self/statm", encoding="ascii") as file:
            _lower(resource.RLIMIT_AS, int(file.read().split()[0]) * resource.getpagesize() + MOST_MEMORY)


def _lower(kind: int, value: int) -> None:
    now, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if now == resource.RLIM_INFINITY else min(value, now), most))
