"""Refuse every job each of its file operations, with the system's errors, and look at what it says and leaves.

python benchmarks/io_errors.py [--jobs "ppo;sft"] [--all] [--operations 1 99] [--every 3] [--output FILE]

A job's file operations are recorded (file_operations.py). Then it runs again for each of them, and the operation is
refused: with one of the errors that it can meet, in turn, or with each of them (--all); once, or it and all that
follow as on a disk that stays full or read-only; or a write is done by half. The job must end well and write what
it would have written, or end with status 2 and one line of at most 300 characters that gives the system's reason;
and what was saved before must be there: the job is given again, a run with --resume, and must end as one to which
nothing happened. A file that was only read has nothing to lose when it is closed; that is not refused.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from file_operations import Operation, restart_with_library

if __name__ == "__main__":
    restart_with_library()

from crash_states import put
from tiny_jobs import TRAINS, Ended, differences, run
from watched_jobs import SAME, SAVED, Outcome, WatchedJob, not_one_line, parser_of, try_jobs

NEW = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
OPEN = (errno.EMFILE, errno.EACCES, errno.EIO)
# What an operation may meet; close, of what was written, reports a write that failed late, on network file systems.
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
REPLACED = ".replaced-"


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
class Refusals(Outcome):
    """What became of one job whose operations were refused.

    Attributes:
        refusals: How often an operation was refused.
        ended: How often the job ended with a line; else it did not need the operation.
        wrong: What was not as it should be.
    """

    refusals: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        return self.wrong

    def __str__(self) -> str:
        return f"{self.refusals} refused, {self.ended} times the job ended, {len(self.wrong)} wrong"


class Refused(WatchedJob):
    """One job that is refused its operations."""

    def all_errors(self, each_error: bool, chosen: range) -> Refusals:
        """Refuse the operations of these numbers; each_error: with each error, else with one after another."""
        recorded = self.record({}, self.command)
        self.keep_as_whole()
        counted = [operation for operation in recorded if operation.kind != "mark"]
        before = list(takewhile(lambda operation: operation != Operation("mark", SAVED), recorded))
        outcome = Refusals(operations=len(counted))
        for refusal in refusals(counted, chosen, each_error):
            operation = counted[refusal.at - 1]
            where = f"{self.job}: {refusal.at} {operation.kind} {operation.path}, {refusal}"
            saved = refusal.at > len(before)
            outcome.refusals += 1
            outcome.wrong += [f"{where}: {problem}" for problem in self._refuse(refusal, saved, outcome)]
        return outcome

    def _refuse(self, refusal: Refusal, saved: bool, outcome: Refusals) -> list[str]:
        put({}, self.out)
        ended = run(self.place, self.command, partial(self._start, refusal))
        if ended.status == 0:
            # What was replaced, and could not be deleted, stays if that is said.
            told = f"{REPLACED}policy: cannot be removed: " in ended.errors
            return [line for line in differences(self.whole, self.out) if not told or REPLACED not in line]
        outcome.ended += 1
        problems = not_one_line(ended) or not_the_reason(ended, refusal)
        again, different = self.resume()
        if again.status == 2 and not saved and self.job in TRAINS:
            different = not_one_line(again)
        elif again.status not in (0, SAME):
            different = [f"status {again.status}: {again.errors[-300:]}"]
        return problems + [f"resume: {line}" for line in different]

    def _start(self, refusal: Refusal) -> None:
        self.watcher.refuse(self.out, refusal.at, refusal.error, refusal.count, refusal.cut)


def refusals(operations: list[Operation], chosen: range, each_error: bool) -> Iterator[Refusal]:
    """The chosen ones of these operations with their errors in turn, or with every one of them."""
    turn: dict[str, int] = {}
    for at, operation in enumerate(operations, start=1):
        if at not in chosen or (operation.kind == "close" and operation.value == os.O_RDONLY):
            continue
        errors = ERRORS[operation.kind]
        turn[operation.kind] = turn.get(operation.kind, -1) + 1
        mine = errors if each_error else errors[turn[operation.kind] % len(errors) :][:1]
        for error in mine:
            yield Refusal(at, error)
            if each_error or turn[operation.kind] % 3 == 0:
                yield Refusal(at, error, FOR_EVER)
        if operation.kind == "write" and len(operation.data) > 1:
            yield Refusal(at, errno.ENOSPC, cut=True)


def not_the_reason(ended: Ended, refusal: Refusal) -> list[str]:
    """What is wrong with the last line: it must have the system's reason."""
    line = ended.errors.splitlines()[-1]
    return [] if os.strerror(refusal.error) in line else [f"not the system's reason: {line}"]


def main_of_benchmark() -> int:
    """Run it all and write the figures; 1 where anything was wrong."""
    parser = parser_of(__doc__ or "", "io_errors.json")
    parser.add_argument("--all", action="store_true", help="every operation with each of its errors")
    parser.add_argument(
        "--operations", type=int, nargs=2, default=(1, FOR_EVER), help="the first and the last"
    )
    parser.add_argument("--every", type=int, default=1, help="of these operations, one in so many")
    given = parser.parse_args()
    first, last = given.operations
    chosen = range(first, last + 1, given.every)
    return try_jobs(
        given, lambda job, place: [(job, partial(Refused(job, place).all_errors, given.all, chosen))]
    )


if __name__ == "__main__":
    sys.exit(main_of_benchmark())
