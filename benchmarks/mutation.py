"""Do the tests notice when the mathematics is wrong? Every small change of src/proxlm/rl, one at a time.

    python benchmarks/mutation.py                       # all, into benchmarks/results/mutation.{json,md}
    python benchmarks/mutation.py --only kl.py --list   # what would be tried
    python benchmarks/mutation.py --only kl.py          # tried and printed, nothing written
    python benchmarks/mutation.py --limit 60            # a sample, printed

A mutant first meets the tests that call its function, with few examples of each property; if it survives, all tests
of their files with the usual number. One in a function that no test calls has survived. Mutants that cannot change a
result are listed, with reasons, in mutation_equivalent.toml. Exit status: 0 if at least 95% are caught, 1 if fewer or
if one of that list is caught after all, 2 if the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the processes are the parallelism

from mutation_report import (
    Outcome,
    key,
    markdown,
    not_one,
    read_equivalent,
    save,
    share_caught,
    wrongly_equivalent,
)
from mutation_run import Harness, Result, Task
from mutators import Mutant, Mutants, find_mutants

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/proxlm/rl")
TESTS = ["tests/rl", "tests/checklist"]
# A test file is taken if it needs nothing of proxlm but these: tests of whole runs are too slow for this.
PURE = {"proxlm.rl", "proxlm.types", "proxlm.errors", "proxlm.seeds"}
HEAVY = {"transformers", "small_models", "helpers", "subprocess"}
FEW, USUAL = 20, 100
THRESHOLD = 0.95


def is_pure(path: Path) -> bool:
    """Whether a test file imports the mathematics and nothing that takes long."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    own = {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] == "proxlm"}
    return "proxlm.rl" in own and own <= PURE and not HEAVY & {name.split(".")[0] for name in names}


def test_files(chosen: list[str]) -> list[str]:
    """Test files of folders where they are pure; files named one by one as they are."""
    files = []
    for name in chosen:
        path = ROOT / name
        files += sorted(p for p in path.rglob("test_*.py") if is_pure(p)) if path.is_dir() else [path]
    return [str(path.relative_to(ROOT)) for path in files]


def collect(only: str | None, limit: int | None) -> tuple[list[Mutants], list[Mutant]]:
    """The mutants of each file, and those to try: all, or `limit` of them, evenly spread."""
    files = [p for p in sorted((ROOT / PACKAGE).rglob("*.py")) if only is None or p.name == Path(only).name]
    if not files:
        sys.exit(f"no file {only} in {PACKAGE}")
    found = [
        find_mutants(p.read_text(encoding="utf-8"), p.relative_to(ROOT / PACKAGE).as_posix()) for p in files
    ]
    mutants = [mutant for module in found for mutant in module.mutants]
    if limit is not None and limit < len(mutants):
        mutants = [mutants[i * len(mutants) // limit] for i in range(limit)]
    return found, mutants


def baseline(harness: Harness, tests: list[str]) -> tuple[Result, Result]:
    """The tests on the code as it is, with few examples and with the usual number."""
    results = []
    for name, examples in (("few", FEW), ("usual", USUAL)):
        trace = str(harness.root / PACKAGE) if name == "few" else ""
        result = harness.alone(Task(name, tests, examples, trace=trace))
        if result.status != "passed" or not result.durations:
            print(f"the tests fail without any mutant ({result.status}): {result.by}\n{result.message}")
            sys.exit(2)
        print(f"{len(result.durations)} tests pass without a mutant, {result.seconds:.0f} s", flush=True)
        results.append(result)
        harness.preload(result.modules)
    return results[0], results[1]


class Check:
    """The two rounds of a run."""

    def __init__(self, harness: Harness, tests: list[str], found: list[Mutants]) -> None:
        self.harness, self.tests = harness, tests
        self.modules = {module.file: module for module in found}
        self.few, self.usual = baseline(harness, tests)

    def covering(self, mutant: Mutant) -> set[str]:
        """The tests that call the mutant's function; all where it runs on import."""
        callers = set(self.few.calls.get(f"{mutant.file}:{mutant.function}", ()))
        on_import = "" in callers or mutant.function not in self.modules[mutant.file].functions
        return set(self.few.durations) if on_import else callers

    def task(self, number: int, mutant: Mutant, last_round: bool) -> Task:
        """Round one: the tests that call the function. Round two: their files, for what tests keep for others."""
        path = self.harness.root / PACKAGE / mutant.file
        name = ".".join([*PACKAGE.parts[1:], *Path(mutant.file).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        code = self.modules[mutant.file].compiled(mutant, str(path))
        only = self.covering(mutant)
        files = sorted({test.split("::")[0] for test in only})
        order, examples = (self.usual.durations, USUAL) if last_round else (self.few.durations, FEW)
        chosen = [test for test in order if test.split("::")[0] in files] if last_round else only
        limit = 60 + 12 * sum(order[test] for test in chosen)
        return Task(str(number), files, examples, name, code, set(chosen), order, limit)

    def run(self, mutants: list[Mutant], reasons: list[str]) -> list[Outcome]:
        """The outcome of each mutant, in order. A declared equivalent one meets the first round only."""
        outcomes: dict[int, Outcome] = {}
        again: set[int] = set()
        tasks: deque[Task] = deque()
        for i, mutant in enumerate(mutants):
            if self.covering(mutant):
                tasks.append(self.task(i, mutant, last_round=False))
            else:
                outcomes[i] = Outcome(mutant, "equivalent" if reasons[i] else "survived", reason=reasons[i])
        print(f"{len(mutants)} mutants, {len(outcomes)} of them in functions that no test calls", flush=True)
        for task, result in self.harness.run(tasks):
            i = int(task.key)
            mutant, status = mutants[i], "caught" if result.status == "failed" else result.status
            if status == "passed" and i not in again and not reasons[i]:
                again.add(i)
                tasks.append(self.task(i, mutant, last_round=True))
                continue
            if status == "passed":
                status = "equivalent" if reasons[i] else "survived"
            outcomes[i] = Outcome(mutant, status, result.by, len(self.covering(mutant)), reasons[i])
            if status == "survived":
                print(f"survived: {mutant.id}: {mutant.original} → {mutant.mutated}", flush=True)
            if len(outcomes) % 50 == 0:
                print(f"{len(outcomes)} of {len(mutants)}", flush=True)
        return [outcomes[i] for i in sorted(outcomes)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="FILE", help="mutate this file alone")
    parser.add_argument("--limit", type=int, metavar="N", help="try N mutants, evenly spread")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, help=f"files or folders (default {' '.join(TESTS)})"
    )
    options = parser.parse_args()
    found, mutants = collect(options.only, options.limit)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.id}: {mutant.original} → {mutant.mutated}")
        print(f"{len(mutants)} mutants; {sum(f.guard_mutants for f in found)} in guards left out")
        return
    equivalent = read_equivalent(Path(__file__).with_name("mutation_equivalent.toml"))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Harness(ROOT, Path(folder), options.jobs), test_files(options.tests), found)
        outcomes = check.run(mutants, [equivalent.get(key(m), "") for m in mutants])
    text = markdown(found, outcomes, len(check.usual.durations), time.monotonic() - start)
    whole = options.only is None and options.limit is None and options.tests == TESTS
    if whole:
        save(ROOT / "benchmarks" / "results", text, outcomes)
    print(text)
    for entry in not_one(outcomes, equivalent) if options.only is None and options.limit is None else ():
        print(f"an entry of mutation_equivalent.toml should name one mutant, but names {entry}")
    wrong = wrongly_equivalent(outcomes)
    for outcome in wrong:
        print(f"declared equivalent, but {outcome.by} catches it: {outcome.mutant.id}")
    sys.exit(int(share_caught(outcomes) < THRESHOLD or bool(wrong)))


if __name__ == "__main__":
    main()
