"""Refuse every job each of its file operations, with the system's errors, and look at what it says and leaves.

python benchmarks/io_errors.py [--jobs "ppo;sft"] [--all] [--operations 1 99] [--output FILE]

A job's file operations are recorded (file_operations.py). Then it runs again for each of them, and the operation is
refused: with one of the errors that it can meet, in turn, or with each of them (--all); once, or it and all that
follow as on a disk that stays full or read-only; or a write is done by half. The job must end well and write what
it would have written, or end with status 2 and one line of at most 300 characters that gives the system's reason;
and what was saved before must be there: the job is given again, a run with --resume, and must end as one to which
nothing happened.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from file_operations import Operation, Watcher, restart_with_library

if __name__ == "__main__":
    restart_with_library()

import shutil

from crash_states import put
from kill import SAME, SAVED, Torture, end_where_known
from tiny_jobs import JOBS, TRAINS, Ended, differences, prepare, run

from proxlm.__main__ import ENVIRONMENT

NEW = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
OPEN = (errno.EMFILE, errno.EACCES, errno.EIO)
# What an operation may meet; close reports a write that failed late, on network file systems.
ERRORS = {
    "open": OPEN,
    "failed": OPEN,
    "create": (*NEW, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    "truncate": (errno.EFBIG, errno.ENOSPC, errno.EIO),
    "sync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "mkdir": NEW,
    "rename": NEW,
    "link": NEW,
    "chmod": (errno.EPERM, errno.EROFS, errno.EIO),
    "unlink": (errno.EACCES, errno.EROFS, errno.EIO),
    "rmdir": (errno.EACCES, errno.EROFS, errno.EIO),
}
FOR_EVER = 1_000_000


class Refusal(NamedTuple):
    """Which operation is refused, from 1, with which error, how many, and whether a write is done by half instead."""

    at: int
    error: int
    count: int = 1
    cut: bool = False

    def __str__(self) -> str:
        how = "by half" if self.cut else errno.errorcode[self.error]
        return f"{how}{' from there on' if self.count > 1 else ''}"


@dataclass
class Outcome:
    """What became of one job.

    Attributes:
        refusals: How often an operation was refused.
        ended: How often the job ended with a line; else it did not need the operation.
        wrong: What was not as it should be.
    """

    operations: int = 0
    refusals: int = 0
    ended: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Refuser(Torture):
    """Refuses one job its operations, in a place that `prepare` has made."""

    def all_errors(self, every: bool, first: int, last: int) -> Outcome:
        """Refuse each operation from number `first` to `last`; every: with each error."""
        began = time.monotonic()
        put({}, self.out)
        recorded = self._record(self.command)
        shutil.rmtree(self.whole, ignore_errors=True)
        shutil.copytree(self.out, self.whole)
        counted = [operation for operation in recorded if operation.kind != "mark"]
        before = list(takewhile(lambda operation: operation != Operation("mark", SAVED), recorded))
        outcome = Outcome(operations=len(counted))
        for refusal in refusals(counted, every):
            if first <= refusal.at <= last:
                operation = counted[refusal.at - 1]
                where = f"{self.job}: {refusal.at} {operation.kind} {operation.path}, {refusal}"
                saved = refusal.at > len(before)
                outcome.refusals += 1
                outcome.wrong += [f"{where}: {problem}" for problem in self._refuse(refusal, saved, outcome)]
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome

    def _refuse(self, refusal: Refusal, saved: bool, outcome: Outcome) -> list[str]:
        put({}, self.out)
        ended = run(self.place, self.command, partial(self._start, refusal))
        if ended.status == 0:
            return differences(self.whole, self.out)
        outcome.ended += 1
        problems = wrong_line(ended, refusal)
        digest = self.place / "digest"
        digest.unlink(missing_ok=True)
        again = run(self.place, self.again, partial(end_where_known, self.known, digest))
        if again.status == SAME:
            return problems
        if again.status == 2 and not saved and self.job in TRAINS:
            return problems + [f"resume: {line}" for line in wrong_line(again, None)]
        if again.status != 0:
            return [*problems, f"resume: status {again.status}: {again.errors[-300:]}"]
        different = differences(self.whole, self.out)
        if not different and digest.exists():
            self.known.add(digest.read_text())
        return problems + [f"resume: {line}" for line in different]

    def _start(self, refusal: Refusal) -> None:
        self.watcher.refuse(self.out, refusal.at, refusal.error, refusal.count, refusal.cut)


def refusals(operations: list[Operation], every: bool) -> Iterator[Refusal]:
    """Each operation with its errors in turn, or with every one of them."""
    turn: dict[str, int] = {}
    for at, operation in enumerate(operations, start=1):
        errors = ERRORS[operation.kind]
        turn[operation.kind] = turn.get(operation.kind, -1) + 1
        mine = errors if every else errors[turn[operation.kind] % len(errors) :][:1]
        for error in mine:
            yield Refusal(at, error)
            if every or turn[operation.kind] % 3 == 0:
                yield Refusal(at, error, FOR_EVER)
        if operation.kind == "write" and len(operation.data) > 1:
            yield Refusal(at, errno.ENOSPC, cut=True)


def wrong_line(ended: Ended, refusal: Refusal | None) -> list[str]:
    """What is wrong with how a command ended: status 2, and one line that gives the reason."""
    lines, found = ended.errors.splitlines(), []
    if ended.status != 2:
        found.append(f"status {ended.status}")
    if (
        "Traceback" in ended.errors
        or len([line for line in lines if line.startswith("proxlm: error: ")]) != 1
    ):
        return [*found, f"not one line: {ended.errors[-700:]}"]
    line = lines[-1]
    if len(line) > 300 + len("proxlm: error: "):
        found.append(f"{len(line)} characters: {line}")
    if refusal is not None and os.strerror(refusal.error) not in line:
        found.append(f"not the system's reason: {line}")
    return found


def main_of_benchmark() -> int:
    """Run it all and write the figures; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", default=";".join(JOBS), help="names, separated by semicolons")
    parser.add_argument("--all", action="store_true", help="every operation with each of its errors")
    parser.add_argument(
        "--operations", type=int, nargs=2, default=(1, FOR_EVER), help="the first and the last"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/io_errors.json"))
    given = parser.parse_args()
    output = given.output.resolve()
    os.environ.update(ENVIRONMENT)
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    wrong: list[str] = []
    watcher = Watcher()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        jobs = given.jobs.split(";")
        prepare(place, jobs)
        for job in jobs:
            outcome = Refuser(job, place, watcher).all_errors(given.all, *given.operations)
            results[job], wrong = asdict(outcome), wrong + outcome.wrong
            print(
                f"{job}: {outcome.operations} operations, {outcome.refusals} refused, {outcome.ended} times the job"
                f" ended, {len(outcome.wrong)} wrong, {outcome.seconds} s",
                flush=True,
            )
            output.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(wrong) or "nothing wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main_of_benchmark())
