"""Kill every job at every one of its file operations, resume it, and compare the end with a run that nobody killed.

python benchmarks/kill.py [--jobs "ppo;sft"] [--checkpoint 0] [--no-resumes] [--output benchmarks/results/kill.json]

One run of each job is left alone, and its file operations are recorded in order (file_operations.py). A crash after
the first k of them leaves one of several states of the folder (crash_states.py): a process that is killed leaves
all k, and the next write in part; a power cut may lose what was not synced. For every k, each state that is not the
same as an earlier one is put into the folder, and the job is resumed from it: the files must end byte for byte as
those of the run that was left alone, but for times, speeds and memory. Where no checkpoint had been saved, the
resume must be refused with one line. Files that are renamed into place must be whole in every state. Then a resume
of a crashed run is recorded, and killed at every operation in the same way.

A resume whose folder and weights are the same, at the start of its loop, as those of one that ended right goes the
same way, and is ended there. The commands are forked off a process that has imported torch. It needs Linux, a C
compiler and glibc; the jobs are tiny models on one thread (tiny_jobs.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from file_operations import Operation, Watcher, read_log, restart_with_library

if __name__ == "__main__":
    restart_with_library()

from crash_states import Disk, State, key, put
from tiny_jobs import JOBS, RUN, TRAINS, WATCHED, Ended, differences, prepare, run

from proxlm.__main__ import ENVIRONMENT
from proxlm.train.common import run_loop

SAME = 99  # the exit status of a resume that would go on as an earlier one
SAVED = "saved"


@dataclass
class Outcome:
    """What became of one job.

    Attributes:
        operations: File operations of the run that was left alone, or of the resume.
        states: Distinct states that a crash may leave.
        resumed: Resumes that ran to the end.
        same: Resumes that were, at the start of their loop, as one of these.
        refused: States without a checkpoint, which cannot be resumed.
        different: What was not as in the run that was left alone.
    """

    operations: int = 0
    states: int = 0
    resumed: int = 0
    same: int = 0
    refused: int = 0
    seconds: float = 0.0
    different: list[str] = field(default_factory=list)


class Torture:
    """Kills one job, in a place that `prepare` has made.

    Args:
        job: Its name.
        place: The folder in which it runs.
        watcher: Records it.
        checkpoint: Only the operations of that checkpoint, from the end of the one before; 0: all.
        every: Of the distinct states, one in so many.
    """

    def __init__(self, job: str, place: Path, watcher: Watcher, checkpoint: int = 0, every: int = 1) -> None:
        self.job, self.place, self.watcher, self.checkpoint = job, place, watcher, checkpoint
        self.every = every
        self.out, self.whole = place / WATCHED, place / "whole"
        self.command = JOBS[job]
        self.again = [*self.command, "--resume"] if job in TRAINS else self.command
        self.known: set[str] = set()  # the states at the start of a loop that ended right
        self.versions: dict[str, set[bytes]] = {}  # what the files that were renamed into place held

    def first_run(self) -> Outcome:
        """The run that is left alone, and its crashes."""
        put({}, self.out)
        operations = self._record(self.command)
        shutil.rmtree(self.whole, ignore_errors=True)
        shutil.copytree(self.out, self.whole, symlinks=True)
        return self._crash(operations, State(), self.again)

    def resumed_run(self, crashed: State) -> Outcome:
        """A resume from what a crash has left, and its crashes."""
        put(crashed, self.out)
        operations = self._record(self.again)
        different = [
            line for line in differences(self.whole, self.out) if "damaged-step-00000002/" not in line
        ]
        shutil.rmtree(self.whole)
        shutil.copytree(self.out, self.whole)
        outcome = self._crash(operations, crashed, self.again)
        outcome.different += [f"{self.job}, resumed: {line}" for line in different]
        return outcome

    def crashed_late(self) -> State:
        """What a crash leaves in the middle of the last checkpoint, with one before it that is damaged."""
        put({}, self.out)
        disk, saved = Disk(), 0
        for operation in self._record(self.command):
            disk.apply(operation)
            saved += operation == Operation("mark", SAVED)
            if saved == 2 and operation.kind == "rename" and operation.other.endswith("manifest.json"):
                state = next(iter(disk.states()))[1]
                torn = f"{RUN.name}/checkpoints/step-00000002/state.safetensors"
                return {**state, torn: (state[torn] or b"")[:-1]}
        raise ValueError(f"{self.job}: no second checkpoint")

    def _record(self, command: Sequence[str]) -> list[Operation]:
        """Run a command to its end; its operations."""
        log = self.place / "operations.log"
        ended = run(self.place, command, partial(_recording, self.watcher, self.out, log))
        if ended.status != 0:
            raise SystemExit(f"{' '.join(command)}: {ended}")
        return read_log(log, self.out)

    def _crash(self, operations: list[Operation], before: State, again: Sequence[str]) -> Outcome:
        outcome, began = Outcome(operations=len(operations)), time.monotonic()
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
            problems = self._torn(state) or self._resume(state, again, saved or bool(before), outcome)
            outcome.different += [f"{where}: {problem}" for problem in problems]
        outcome.seconds = round(time.monotonic() - began, 1)
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

    def _resume(self, state: State, again: Sequence[str], saved: bool, outcome: Outcome) -> list[str]:
        """Put a state into the folder and resume from it; what went wrong."""
        put(state, self.out)
        digest = self.place / "digest"
        digest.unlink(missing_ok=True)
        ended = run(self.place, again, partial(end_where_known, self.known, digest))
        if ended.status == SAME:
            outcome.same += 1
            return []
        has_checkpoint = any(name.endswith("/manifest.json") and "/step-" in name for name in state)
        if ended.status == 2 and self.job in TRAINS and not saved and not has_checkpoint:
            outcome.refused += 1
            return _not_one_line(ended)
        if ended.status != 0:
            return [f"status {ended.status}: {ended.errors[-500:]}"]
        outcome.resumed += 1
        problems = differences(self.whole, self.out)
        if not problems and digest.exists():
            self.known.add(digest.read_text())
        return problems


def _not_one_line(ended: Ended) -> list[str]:
    lines = ended.errors.splitlines()
    fine = len(lines) == 1 and lines[0].startswith("proxlm: error: ") and "Traceback" not in ended.errors
    return [] if fine else [f"not one line: {ended.errors[-500:]}"]


def _shown(operations: list[Operation], number: int) -> str:
    if number == 0:
        return "nothing yet"
    operation = operations[number - 1]
    return f"{operation.kind} {operation.path}" + (f" {operation.other}" if operation.other else "")


def _recording(watcher: Watcher, out: Path, log: Path) -> None:
    """In a forked process: record what it does from now on, and where it has saved a checkpoint."""
    save = run_loop.save_checkpoint

    def marked(*arguments: Any, **more: Any) -> Path:
        folder = save(*arguments, **more)
        watcher.mark(SAVED)
        return folder

    run_loop.save_checkpoint = marked
    watcher.record(out, log)


def end_where_known(known: set[str], digest: Path) -> None:
    """In a forked process: end a run whose loop begins as a known one's, else say how it begins."""
    train = run_loop.TrainingLoop.train

    def recognised(self: Any, log: Any) -> None:
        found = _state_of(self)
        if found in known:
            os._exit(SAME)
        digest.write_text(found)
        train(self, log)

    run_loop.TrainingLoop.train = recognised  # type: ignore[method-assign]


def _state_of(loop: Any) -> str:
    """A hash of a run's folder, weights and counters."""
    digest = hashlib.sha256(repr(loop.state).encode())
    for path in sorted(loop.folder.rglob("*")):
        if path.name != ".lock":
            digest.update(str(path).encode() + b"\0")
            digest.update(path.read_bytes() if path.is_file() else b"")
    for name, tensor in sorted((loop.weights() | loop.extra_tensors()).items()):
        digest.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def main_of_benchmark() -> int:
    """Run it all and write the figures; 1 where anything differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", default=";".join(JOBS), help="names, separated by semicolons")
    parser.add_argument("--checkpoint", type=int, default=0, help="only the operations of that one; 0: all")
    parser.add_argument("--every", type=int, default=1, help="of the distinct states, one in so many")
    parser.add_argument("--no-resumes", action="store_true", help="kill no resumes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kill.json"))
    given = parser.parse_args()
    output = given.output.resolve()
    os.environ.update(ENVIRONMENT)
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    different: list[str] = []
    watcher = Watcher()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        jobs = given.jobs.split(";")
        prepare(place, jobs)
        for job in jobs:
            torture = Torture(job, place, watcher, given.checkpoint, given.every)
            parts: dict[str, Callable[[], Outcome]] = {job: torture.first_run}
            if job in TRAINS and not given.no_resumes:
                parts[f"{job}, resumed"] = lambda t=torture: t.resumed_run(t.crashed_late())  # type: ignore[misc]
            for name, part in parts.items():
                outcome = part()
                results[name] = asdict(outcome)
                different += outcome.different
                print(
                    f"{name}: {outcome.operations} operations, {outcome.states} states, {outcome.resumed} resumed,"
                    f" {outcome.same} as one of these, {outcome.refused} without a checkpoint,"
                    f" {len(outcome.different)} differences, {outcome.seconds} s",
                    flush=True,
                )
                output.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(different) or "no differences")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main_of_benchmark())
