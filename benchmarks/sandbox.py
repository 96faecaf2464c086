"""How many programs with tests the sandbox scores per second.

    python benchmarks/sandbox.py [--programs 400] [--repeats 3]

Each program defines a function and has three tests, and ends by itself; nothing of it is worth mentioning in time, so
this is what the sandbox itself costs. The best of the repeats is printed, for one worker and for one per CPU.
"""

from __future__ import annotations

import argparse
import os
import time

from proxlm.sandbox import Program, run_programs

SOURCE = "def twice(x):\n    return 2 * x + {number} - {number}\n"
TESTS = ("assert twice(2) == 4", "assert twice(-1) == -2", "assert twice('a') == 'aa'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    programs = [Program(SOURCE.format(number=i), tests=TESTS) for i in range(given.programs)]
    cpus = len(os.sched_getaffinity(0))
    for workers in sorted({1, cpus}):
        seconds = []
        for _ in range(given.repeats):
            started = time.perf_counter()
            results = run_programs(programs, workers=workers)
            seconds.append(time.perf_counter() - started)
            assert all(r.status == "ok" and r.tests[:2] == ("", "") for r in results)
        rate = given.programs / min(seconds)
        print(f"{workers} workers on {cpus} CPUs: {rate:.0f} programs per second ({1000 / rate:.1f} ms each)")


if __name__ == "__main__":
    main()
