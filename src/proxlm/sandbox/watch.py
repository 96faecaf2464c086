"""Watching a program from outside: enforcing the limits that the kernel does not, and ending it."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from proxlm.sandbox.confine import unmount_folder

_TICK = 0.02  # seconds between checks of threads and files
_STALL = (
    0.5  # a longer time between two checks means that this process, and so the program, was not scheduled
)
_GRACE = 2.0  # seconds until a process whose pipe is closed is visible as ended
_LARGEST_REPORT = 4 << 20
READY = b"\0"
"""What a process writes once it is confined, before it runs untrusted code."""


@dataclass
class Watched:
    """A program's process, that of its tests (None without tests), their folder, and the read ends of their pipes.

    mounted: whether the folder is a file system of its own.
    """

    process: int
    judge: int | None
    folder: str
    mounted: bool
    ready: int
    output: int
    error: int
    report: int
    read: dict[int, bytearray] = field(default_factory=dict)


def watch(watched: Watched, job: dict[str, Any]) -> dict[str, Any]:
    """Wait until the program ends, or end it; returns the result. Nothing of the program is left afterwards."""
    started = time.monotonic()
    watched.read = {descriptor: bytearray() for descriptor in (watched.output, watched.error, watched.report)}
    refusal = _refusal(watched)
    status = "unconfined" if refusal else _wait(watched, job)
    seconds = time.monotonic() - started
    if status == "judged" and not _verdict(watched):
        status = "lost" if _gone(watched.process) else "error"
    code: int | None = _end(watched)
    for descriptor in watched.read:
        while (
            status in ("ended", "lost", "judged") and (some := _read(watched, descriptor, job)) is not False
        ):
            if some is None:
                status = "output"
    count, size = _clear(watched)
    if status in ("ended", "lost") and (count > job["files"] or size > job["file_size"]):
        status = "files"
    error = bytes(watched.read[watched.error])
    if status in ("ended", "lost"):
        status = _how_it_ended(code or 0, error, tested=status == "lost")
    elif status != "unconfined":
        code = None
    return {
        "status": "ok" if status == "judged" else status,
        "stdout": _text(bytes(watched.read[watched.output]), job),
        "stderr": refusal + _text(error, job),
        "exit_code": code,
        "seconds": seconds,
        "tests": [one for one in reports_in(bytes(watched.read[watched.report])) if isinstance(one, str)],
    }


def _refusal(watched: Watched) -> str:
    """Why a process could not be confined; "" once all are confined and have closed the pipe."""
    text = b""
    while part := os.read(watched.ready, 1 << 12):
        text += part
    if text == READY * (1 if watched.judge is None else 2):
        return ""
    return text.replace(READY, b"").decode(errors="replace") or "it ended before it was confined"


def _wait(watched: Watched, job: dict[str, Any]) -> str:
    """Wait for the end: "ended" by itself, "judged" by its tests, "abandoned" by the run, or the exceeded limit."""
    end = os.pidfd_open(watched.process if watched.judge is None else watched.judge)
    poll = select.poll()
    for descriptor in (end, watched.output, watched.error, watched.report):
        poll.register(descriptor, select.POLLIN)
    poll.register(0, 0)  # reports only that the run no longer waits for the result
    before = look = time.monotonic()
    deadline = before + job["seconds"]
    while (now := time.monotonic()) < (deadline := deadline + max(0.0, now - before - _STALL)):
        before = now
        if now >= look:
            if limit := _broken_limit(watched, job):
                return limit
            look = now + _TICK
        for descriptor, _ in poll.poll(1000 * max(0.001, min(look, deadline) - now)):
            if descriptor == end:
                return "ended" if watched.judge is None else "judged"
            if descriptor == 0:
                return "abandoned"
            some = _read(watched, descriptor, job)
            if some is None:
                return "output"
            if not some:
                poll.unregister(descriptor)
    return "timeout"


def _read(watched: Watched, descriptor: int, job: dict[str, Any]) -> bool | None:
    """Read what is there; returns whether there was anything, or None if it was too much."""
    part = os.read(descriptor, 1 << 16)
    watched.read[descriptor] += part
    largest = _LARGEST_REPORT if descriptor == watched.report else job["output"]
    return None if len(watched.read[descriptor]) > largest else bool(part)


def _broken_limit(watched: Watched, job: dict[str, Any]) -> str:
    with open(f"/proc/{watched.process}/stat", encoding="utf-8", errors="replace") as file:
        if int(file.read().rpartition(")")[2].split()[17]) > job["threads"]:
            return "threads"
    count, size = 0, 0
    with os.scandir(watched.folder) as entries:
        for entry in entries:
            count += 1
            try:
                size += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    if count > job["files"] or size > job["file_size"]:
        return "files"
    if not watched.mounted and _deleted_files(watched) > job["open_files"]:
        return "files"
    return ""


def _deleted_files(watched: Watched) -> int:
    """How many deleted files the program keeps in memory by a mapping; of open ones the kernel limits the number."""
    with open(f"/proc/{watched.process}/maps", encoding="utf-8", errors="replace") as file:
        return len({line.split()[4] for line in file if line.endswith(" (deleted)\n")})


def _gone(process: int) -> bool:
    """Whether the process ends by itself within a short time."""
    poll = select.poll()
    poll.register(os.pidfd_open(process), select.POLLIN)
    return bool(poll.poll(1000 * _GRACE))


def _end(watched: Watched) -> int:
    """Kill what is left; returns the program's exit status, or −(the signal that ended it)."""
    if watched.judge is not None:
        os.kill(watched.judge, signal.SIGKILL)
        os.waitpid(watched.judge, 0)
    os.kill(watched.process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(watched.process, 0)[1])


def _clear(watched: Watched) -> tuple[int, int]:
    """Remove the folder; returns the number of files in it and their total bytes.

    A confined program can create neither folders nor links, so there is nothing to follow.
    """
    count, size = 0, 0
    with os.scandir(watched.folder) as entries:
        for entry in list(entries):
            count += 1
            size += entry.stat(follow_symlinks=False).st_size
            if not watched.mounted:
                os.unlink(entry.path)
    if watched.mounted:
        os.chdir("/")
        unmount_folder(watched.folder)
    os.rmdir(watched.folder)
    return count, size


def _how_it_ended(code: int, error: bytes, tested: bool) -> str:
    if code < 0:
        return "timeout" if -code == signal.SIGXCPU else "crashed"
    if code == 0:
        return "error" if tested else "ok"  # it ended before its tests did
    return "memory" if error.rstrip().rpartition(b"\n")[2].startswith(b"MemoryError") else "error"


def _verdict(watched: Watched) -> bool:
    """Whether the program was alive until its tests were done."""
    while _read(watched, watched.report, {}):
        pass
    return reports_in(bytes(watched.read[watched.report]))[-1:] == [True]


def reports_in(data: bytes) -> list[Any]:
    """The complete messages that the tests' process wrote, up to the first that is none."""
    messages, at = list[Any](), 0
    while len(data) >= at + 4 and len(data) >= (end := at + 4 + int.from_bytes(data[at : at + 4], "big")):
        try:
            messages.append(json.loads(data[at + 4 : end]))
        except (ValueError, RecursionError):
            break
        at = end
    return messages


def _text(data: bytes, job: dict[str, Any]) -> str:
    return data[: job["output"]].decode("utf-8", errors="replace")
