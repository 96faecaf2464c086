"""The same PPO steps in two checkouts, one after the other: seconds of each phase and their ratio.

    git worktree add ../before COMMIT
    python benchmarks/two_checkouts.py ../before . [--workloads fixed ragged vocab one-row] [--rounds 5] [--steps 4]

Each checkout's own step_proxlm.py runs in a process of its own, in turn within a round; the first step is warm-up.
Random Llamas in float32, a separate critic, 2 threads. Medians over all rounds. Needs a machine with nothing else to
do. The phase "generate" is the rollout alone, so the table covers generation as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from against_trl import WORKLOADS as STEP_WORKLOADS
from step_models import Work, make_models

# A batch of one row shows what each token costs beside the matrix products.
WORKLOADS = STEP_WORKLOADS | {"one-row": Work(batch=1, micro_batch=1, response=256)}
PHASES = ("generate", "score", "update", "step")


def seconds(checkout: Path, models: Path, work: Work, steps: int) -> dict[str, list[float]]:
    """Seconds of each phase and step, after the first."""
    command = [
        sys.executable,
        str(checkout / "benchmarks" / "step_proxlm.py"),
        str(models),
        json.dumps(asdict(work)),
    ]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(
        [*command, "--steps", str(steps), "--threads", "2"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    found = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return {phase: found[phase][1:] for phase in PHASES}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--workloads", nargs="+", default=["fixed", "ragged"], choices=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    print("| workload | phase | before, s | after, s | after / before |\n| --- | --- | --- | --- | --- |")
    for name in options.workloads:
        found: dict[str, dict[str, list[float]]] = {
            side: {phase: [] for phase in PHASES} for side in ("before", "after")
        }
        with tempfile.TemporaryDirectory() as folder:
            make_models(WORKLOADS[name], Path(folder))
            for number in range(options.rounds):
                order = ("before", "after") if number % 2 == 0 else ("after", "before")
                for side in order:
                    checkout = getattr(options, side).resolve()
                    for phase, values in seconds(
                        checkout, Path(folder), WORKLOADS[name], options.steps
                    ).items():
                        found[side][phase] += values
        for phase in PHASES:
            before, after = (statistics.median(found[side][phase]) for side in ("before", "after"))
            print(f"| {name} | {phase} | {before:.3f} | {after:.3f} | {after / before:.3f} |", flush=True)


if __name__ == "__main__":
    main()
