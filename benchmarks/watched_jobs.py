"""What kill.py and io_errors.py share: a job that is recorded, spoiled and run again, and their command line.

The jobs are tiny models on one thread (tiny_jobs.py), forked off a process that has imported torch. What a resume
does depends on what it finds: one whose folder and weights are the same, at the start of its loop, as those of one
that ended right goes the same way, and is ended there.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crash_states import State, put
from file_operations import Operation, Watcher, read_log
from tiny_jobs import JOBS, TRAINS, WATCHED, Ended, differences, prepare, run

from proxlm.__main__ import ENVIRONMENT
from proxlm.train.common import run_loop

SAME = 99  # the exit status of a resume that would go on as an earlier one
SAVED = "saved"
LONGEST_LINE = 300 + len("proxlm: error: ")


@dataclass
class Outcome:
    """What became of one job.

    Attributes:
        operations: File operations of the run that was recorded.
        seconds: On the clock.
    """

    operations: int = 0
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """What was not as it should be."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The figures."""
        raise NotImplementedError


class WatchedJob:
    """One job in a place that `prepare` has made.

    Args:
        job: Its name.
        place: The folder in which it runs.
    """

    def __init__(self, job: str, place: Path) -> None:
        self.job, self.place, self.watcher = job, place, Watcher()
        self.out, self.whole = place / WATCHED, place / "whole"
        self.command = JOBS[job]
        self.again = [*self.command, "--resume"] if job in TRAINS else self.command
        self._known: set[str] = set()  # the states at the start of a loop that ended right

    def record(self, before: State, command: list[str]) -> list[Operation]:
        """Run a command from that state of the folder to its end; its operations."""
        put(before, self.out)
        log = self.place / "operations.log"
        ended = run(self.place, command, partial(_recording, self.watcher, self.out, log))
        if ended.status != 0:
            raise SystemExit(f"{' '.join(command)}: {ended}")
        return read_log(log, self.out)

    def keep_as_whole(self) -> None:
        """Compare what follows with what the folder now holds."""
        shutil.rmtree(self.whole, ignore_errors=True)
        shutil.copytree(self.out, self.whole, symlinks=True)

    def resume(self) -> tuple[Ended, list[str]]:
        """Run the job again with what its folder holds: how it ended, and what is then not as in the whole run."""
        digest = self.place / "digest"
        digest.unlink(missing_ok=True)
        ended = run(self.place, self.again, partial(_end_where_known, self._known, digest))
        problems = differences(self.whole, self.out) if ended.status == 0 else []
        if ended.status == 0 and not problems and digest.exists():
            self._known.add(digest.read_text())
        return ended, problems


def not_one_line(ended: Ended, alone: bool = False) -> list[str]:
    """What is wrong with how a command was refused: it must say why in one line. alone: and say nothing else."""
    all_lines = ended.errors.splitlines()
    lines = [line for line in all_lines if line.startswith("proxlm: error: ")]
    found = [] if ended.status == 2 else [f"status {ended.status}"]
    if len(lines) != 1 or "Traceback" in ended.errors or (alone and len(all_lines) != 1):
        return [*found, f"not one line: {ended.errors[-700:]}"]
    return found + [f"{len(line)} characters: {line}" for line in lines if len(line) > LONGEST_LINE]


def _recording(watcher: Watcher, out: Path, log: Path) -> None:
    """In a forked process: record what it does from now on, and where it has saved a checkpoint."""

    def marking(save: Callable[..., Path]) -> Callable[..., Path]:
        def marked(*arguments: Any, **more: Any) -> Path:
            folder = save(*arguments, **more)
            watcher.mark(SAVED)
            return folder

        return marked

    run_loop.save_checkpoint = marking(run_loop.save_checkpoint)
    run_loop.complete_checkpoint = marking(run_loop.complete_checkpoint)  # in a thread
    watcher.record(out, log)


def _end_where_known(known: set[str], digest: Path) -> None:
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


def parser_of(description: str, output: str) -> argparse.ArgumentParser:
    """The command line of a program that tries the jobs, with what both have."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--jobs", default=";".join(JOBS), help="names, separated by semicolons")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results") / output)
    return parser


def try_jobs(
    given: argparse.Namespace, parts: Callable[[str, Path], Iterable[tuple[str, Callable[[], Outcome]]]]
) -> int:
    """Try each job and write the figures; 1 where anything was wrong.

    Args:
        given: The command line.
        parts: The name and the function of each part of a job in a place.
    """
    output = given.output.resolve()
    os.environ.update(ENVIRONMENT)
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        jobs = given.jobs.split(";")
        prepare(place, jobs)
        gc.freeze()  # the forks do not look through what is there already
        for name, part in (part for job in jobs for part in parts(job, place)):
            began = time.monotonic()
            outcome = part()
            outcome.seconds = round(time.monotonic() - began, 1)
            results[name], wrong = asdict(outcome), wrong + outcome.problems()
            print(f"{name}: {outcome.operations} operations, {outcome}, {outcome.seconds} s", flush=True)
            output.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(wrong) or "nothing wrong")
    return int(bool(wrong))
