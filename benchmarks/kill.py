"""Kill every job at every one of its file operations, resume it, and compare the end with a run that nobody killed.

python benchmarks/kill.py [--jobs "ppo;sft"] [--checkpoint 0] [--no-resumes] [--output benchmarks/results/kill.json]

One run of each job is left alone, and its file operations are recorded in order (file_operations.py). A crash after
the first k of them leaves one of several states of the folder (crash_states.py): a process that is killed leaves
all k, and the next write in part; a power cut may lose what was not synced. For every k, each state that is not the
same as an earlier one is put into the folder, and the job is resumed from it: the files must end byte for byte as
those of the run that was left alone, but for times, speeds and memory. Where no checkpoint had been saved, the
resume must be refused with one line. Files that are renamed into place must be whole in every state. Then a resume
of a crashed run is recorded, and killed at every operation in the same way.

It needs Linux, a C compiler and glibc; watched_jobs.py says how the jobs are run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from file_operations import Operation, restart_with_library

if __name__ == "__main__":
    restart_with_library()

from crash_states import Disk, State, key, put
from tiny_jobs import RUN, TRAINS, differences
from watched_jobs import SAME, SAVED, Outcome, WatchedJob, not_one_line, parser_of, try_jobs


@dataclass
class Crashes(Outcome):
    """What became of one job after its crashes.

    Attributes:
        states: Distinct states that a crash may leave.
        resumed: Resumes that ran to the end.
        same: Resumes that were, at the start of their loop, as one of these.
        refused: States without a checkpoint, which cannot be resumed.
        different: What was not as in the run that was left alone.
    """

    states: int = 0
    resumed: int = 0
    same: int = 0
    refused: int = 0
    different: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        return self.different

    def __str__(self) -> str:
        return (
            f"{self.states} states, {self.resumed} resumed, {self.same} as one of these,"
            f" {self.refused} without a checkpoint, {len(self.different)} differences"
        )


class Killed(WatchedJob):
    """One job that is killed.

    Args:
        job: Its name.
        place: The folder in which it runs.
        checkpoint: Only the operations of that checkpoint, from the end of the one before; 0: all.
        every: Of the distinct states, one in so many.
    """

    def __init__(self, job: str, place: Path, checkpoint: int = 0, every: int = 1) -> None:
        super().__init__(job, place)
        self.checkpoint, self.every = checkpoint, every
        self.versions: dict[str, set[bytes]] = {}  # what the files that were renamed into place held

    def first_run(self) -> Crashes:
        """The run that is left alone, and its crashes."""
        operations = self.record({}, self.command)
        self.keep_as_whole()
        return self._crash(operations, State())

    def resumed_run(self) -> Crashes:
        """A resume from what a crash has left, and its crashes."""
        crashed = self._crashed_late()
        operations = self.record(crashed, self.again)
        different = [
            line for line in differences(self.whole, self.out) if "damaged-step-00000002/" not in line
        ]
        self.keep_as_whole()
        outcome = self._crash(operations, crashed)
        outcome.different += [f"{self.job}, resumed: {line}" for line in different]
        return outcome

    def _crashed_late(self) -> State:
        """What a crash leaves in the middle of the last checkpoint, with one before it that is damaged."""
        disk, saved = Disk(), 0
        for operation in self.record({}, self.command):
            disk.apply(operation)
            saved += operation == Operation("mark", SAVED)
            if saved == 2 and operation.kind == "rename" and operation.other.endswith("manifest.json"):
                state = next(iter(disk.states()))[1]
                torn = f"{RUN.name}/checkpoints/step-00000002/state.safetensors"
                return {**state, torn: (state[torn] or b"")[:-1]}
        raise ValueError(f"{self.job}: no second checkpoint")

    def _crash(self, operations: list[Operation], before: State) -> Crashes:
        outcome = Crashes(operations=len(operations))
        put(before, self.out)
        self.versions = {name: {data} for name, data in before.items() if data is not None}
        seen = set()
        for number, what, state, saved in self._states(operations, Disk(self.out)):
            if (identity := key(state)) in seen:
                continue
            seen.add(identity)
            if len(seen) % self.every:
                continue
            outcome.states += 1
            where = f"{self.job}: after operation {number} ({_shown(operations, number)}), {what}"
            problems = self._torn(state) or self._resume(state, saved or bool(before), outcome)
            outcome.different += [f"{where}: {problem}" for problem in problems]
        return outcome

    def _states(self, operations: list[Operation], disk: Disk) -> Iterator[tuple[int, str, State, bool]]:
        """Number of the last operation, what has happened to it, the state, and whether a checkpoint was saved."""
        saved = 0
        for number in range(len(operations) + 1):
            if number:
                operation = operations[number - 1]
                disk.apply(operation)
                saved += operation == Operation("mark", SAVED)
                if operation.kind == "rename":
                    self._remember(disk, operation.other)
            if self.checkpoint in (0, saved + 1):
                following = operations[number] if number < len(operations) else None
                for what, state in disk.states(following):
                    yield number, what, state, saved > 0

    def _remember(self, disk: Disk, path: str) -> None:
        for name, data in next(iter(disk.states()))[1].items():
            if data is not None and (name == path or name.startswith(f"{path}/")):
                self.versions.setdefault(name, set()).add(data)

    def _torn(self, state: State) -> list[str]:
        """The files with names of their own that hold something else than was renamed into place."""
        return [
            f"{name} is torn"
            for name, data in state.items()
            if data is not None
            and not name.endswith(".jsonl")
            and not any(part.startswith(".") for part in Path(name).parts)
            and name in self.versions
            and data not in self.versions[name]
        ]

    def _resume(self, state: State, saved: bool, outcome: Crashes) -> list[str]:
        """Put a state into the folder and resume from it; what went wrong."""
        put(state, self.out)
        ended, different = self.resume()
        if ended.status == SAME:
            outcome.same += 1
            return []
        # A kept model, best/step-…, has a manifest as well.
        has_checkpoint = any(
            name.endswith("/manifest.json") and "/checkpoints/step-" in name for name in state
        )
        if ended.status == 2 and self.job in TRAINS and not saved and not has_checkpoint:
            outcome.refused += 1
            return not_one_line(ended, alone=True)
        if ended.status != 0:
            return [f"status {ended.status}: {ended.errors[-500:]}"]
        outcome.resumed += 1
        return different


def _shown(operations: list[Operation], number: int) -> str:
    if number == 0:
        return "nothing yet"
    operation = operations[number - 1]
    return f"{operation.kind} {operation.path}" + (f" {operation.other}" if operation.other else "")


def main_of_benchmark() -> int:
    """Run it all and write the figures; 1 where anything differed."""
    parser = parser_of(__doc__ or "", "kill.json")
    parser.add_argument("--checkpoint", type=int, default=0, help="only the operations of that one; 0: all")
    parser.add_argument("--every", type=int, default=1, help="of the distinct states, one in so many")
    parser.add_argument("--no-resumes", action="store_true", help="kill no resumes")
    given = parser.parse_args()

    def parts(job: str, place: Path) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        killed = Killed(job, place, given.checkpoint, given.every)
        yield job, killed.first_run
        if job in TRAINS and not given.no_resumes:
            yield f"{job}, resumed", killed.resumed_run

    return try_jobs(given, parts)


if __name__ == "__main__":
    sys.exit(main_of_benchmark())
