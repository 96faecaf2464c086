"""Feeds damaged input to all that reads from outside; nothing but an error of our own, of one line, may come of it.

    nice python benchmarks/fuzz.py [--inputs 200000] [--seed 0] [--targets jsonl,wire-answer,...]

Inputs are mutations of valid ones (fuzz_mutate.py). One that reaches a line of this project that none before it
reached is kept, and mutated further. Each has a budget of CPU time and memory, in this one process. What is found is
made small and printed; it then belongs into FOUND of tests/test_fuzz.py. A new target is an entry of TARGETS in
fuzz_targets.py.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_mutate import mutated
from fuzz_targets import TARGETS, Target

import proxlm
from proxlm.errors import LONGEST_MESSAGE, UserError
from proxlm.text import visible

SOURCE = str(Path(proxlm.__file__).parent)
SECONDS = 2.0
"""CPU time of an input; on a busy machine more passes on the clock."""
CLOCK_SECONDS = 30.0
"""For what waits instead of computing."""
MEMORY = 512 << 20
"""Bytes that an input may take beyond what the process had before its target's first."""
LARGEST = 1 << 14
SMALLER_TRIES = 300
_MIB = 1 << 20


class OverBudgetError(BaseException):
    """An input took too long. Not an Exception, so that what is tried does not take it for one of its own."""


@dataclass
class Outcome:
    """What came of an input: "" if it was read or refused as it should be, else what is wrong, and where."""

    wrong: str = ""
    place: str = ""
    refused: bool = False
    seconds: float = 0.0


@dataclass
class Tally:
    """What came of a target's inputs."""

    inputs: int = 0
    refused: int = 0
    corpus: int = 0
    lines: int = 0
    slowest: float = 0.0
    memory: int = 0
    seconds: float = 0.0
    found: list[tuple[Outcome, bytes]] = field(default_factory=list)


class Lines:
    """The lines of this project that were reached since the last look; only while `tracing`."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._ours: dict[int, bool] = {}
        self.new = False

    def __len__(self) -> int:
        return len(self._seen)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        self.new = False
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _call(self, frame: FrameType, *_: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(id(code))
        if ours is None:
            ours = self._ours[id(code)] = code.co_filename.startswith(SOURCE)
        return self._line if ours else None

    def _line(self, frame: FrameType, *_: Any) -> Any:
        place = (id(frame.f_code), frame.f_lineno)
        if place not in self._seen:
            self._seen.add(place)
            self.new = True
        return self._line


@contextmanager
def budget() -> Iterator[list[str]]:
    """Raises OverBudgetError in the block when its time is over, again and again; yields what was exceeded."""
    exceeded: list[str] = []

    def over(number: int, _: Any) -> None:
        kind = "CPU time" if number == signal.SIGPROF else "time on the clock"
        exceeded.append(kind)
        raise OverBudgetError(kind)

    signal.signal(signal.SIGPROF, over)
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 0.5)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS, 1.0)
    try:
        yield exceeded
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(target: Target, data: bytes, folder: Path, lines: Lines | None = None) -> Outcome:
    """Feed one input within its budget."""
    outcome, began, before = Outcome(), time.process_time(), peak_memory()
    exceeded: list[str] = []
    try:
        with budget() as exceeded:
            if lines is None:
                target.feed(data, folder)
            else:
                with lines.tracing():
                    target.feed(data, folder)
    except UserError as error:
        outcome.refused = True
        outcome.wrong = message_problem(str(error))
        outcome.place = outcome.wrong and place_of(error)
    except OverBudgetError as error:
        outcome.wrong, outcome.place = f"over budget: {error}", place_of(error)
    except BaseException as error:
        if isinstance(error, target.refusals):
            outcome.refused = True
        elif isinstance(error, KeyboardInterrupt):
            raise
        else:
            outcome.wrong, outcome.place = type(error).__name__, place_of(error)
    outcome.seconds = time.process_time() - began
    if exceeded and not outcome.wrong:
        outcome.wrong = f"over budget: {exceeded[0]}"
    if peak_memory() - before > MEMORY // 2:
        outcome.wrong = outcome.wrong or f"over budget: {(peak_memory() - before) // _MIB} MiB more memory"
    return outcome


def message_problem(message: str) -> str:
    if visible(message) != message:
        return "a message with control characters or several lines"
    return "a message that is too long" if len(message) > LONGEST_MESSAGE else ""


def place_of(error: BaseException) -> str:
    """The last line of ours that an exception went through, and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(SOURCE)] or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def smaller(target: Target, data: bytes, folder: Path, wanted: Outcome) -> bytes:
    """A shorter input of which the same comes."""
    tries, size = 0, max(1, len(data) // 2)
    while size and tries < SMALLER_TRIES and "over budget" not in wanted.wrong:
        at, shorter = 0, False
        while at < len(data) and tries < SMALLER_TRIES:
            candidate, tries = data[:at] + data[at + size :], tries + 1
            got = attempt(target, candidate, folder)
            if (got.wrong, got.place) == (wanted.wrong, wanted.place):
                data, shorter = candidate, True
            else:
                at += size
        size = size if shorter and size == 1 else size // 2
    return data


def fuzz(name: str, inputs: int, seed: int) -> Tally:
    """Try one target: its valid inputs first, then mutations of those and of what reached new lines."""
    target, rng, lines, tally = TARGETS[name], random.Random(f"{seed} {name}"), Lines(), Tally()
    corpus: list[bytes] = []
    known: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder, seeds = Path(made), target.seeds()
        attempt(target, seeds[0], folder)  # what is imported and made once is no input's
        stack.enter_context(only_new_garbage())
        stack.enter_context(limited_memory())
        start, memory = time.process_time(), peak_memory()
        for number in range(inputs):
            data = (
                seeds[number]
                if number < len(seeds)
                else mutated(rng, corpus or seeds, target.words)[:LARGEST]
            )
            outcome = attempt(target, data, folder, lines)
            tally.inputs, tally.refused = tally.inputs + 1, tally.refused + outcome.refused
            tally.slowest = max(tally.slowest, outcome.seconds)
            if lines.new or number < len(seeds):
                corpus.append(data)
            key = (outcome.wrong, outcome.place)
            if outcome.wrong and key not in known:
                known.add(key)
                tally.found.append((outcome, smaller(target, data, folder, outcome)))
        tally.corpus, tally.lines = len(corpus), len(lines)
        tally.seconds, tally.memory = time.process_time() - start, peak_memory() - memory
    return tally


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Within, and once at its end, garbage is looked for among the objects made since: torch alone has a million."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within, the process may take MEMORY more than it has: more raises MemoryError."""
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """How many inputs each target gets: by weight, and together at least `inputs`."""
    weights = sum(TARGETS[name].weight for name in names)
    return {name: int(-(-inputs * TARGETS[name].weight // weights)) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    arguments = parser.parse_args()
    logging.disable()
    total, found = Tally(), 0
    print(
        "| target | inputs | refused | kept | lines | slowest, ms | memory, MiB | seconds |\n"
        + "| --- " * 8
        + "|"
    )
    for name, inputs in shares(arguments.targets.split(","), arguments.inputs).items():
        tally = fuzz(name, inputs, arguments.seed)
        print(
            f"| {name} | {tally.inputs} | {tally.refused} | {tally.corpus} | {tally.lines}"
            f" | {1000 * tally.slowest:.0f} | {tally.memory / _MIB:.0f} | {tally.seconds:.0f} |",
            flush=True,
        )
        for outcome, data in tally.found:
            print(f"FOUND in {name}: {outcome.wrong} at {outcome.place}: {data[:300]!r}", flush=True)
        found += len(tally.found)
        total.inputs, total.refused = total.inputs + tally.inputs, total.refused + tally.refused
        total.seconds, total.slowest = total.seconds + tally.seconds, max(total.slowest, tally.slowest)
    print(
        f"{total.inputs} inputs, {total.refused} refused, slowest {1000 * total.slowest:.0f} ms of CPU time,"
        f" {total.seconds:.0f} s of CPU time; {found} found"
    )
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
