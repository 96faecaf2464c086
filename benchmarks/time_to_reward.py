"""Seconds and steps until a mean reward: proxlm and TRL 1.12.0 on the stories recipe's task, in turn.

    python -m venv TRL; TRL/bin/pip install torch==2.13.0 trl==1.12.0 transformers datasets accelerate vaderSentiment
    python benchmarks/time_to_reward.py TRL/bin/python [--targets 0.5 0.65 0.75] [--seeds 0 1 2] [--steps 60]
    python benchmarks/curves.py time docs/images/time-to-reward.svg benchmarks/results/time_to_reward.json

The same pretrained model of 260K parameters (as policy, reference and, with a score head of zeros, separate value
model), the same prompts, the same scoring function (VADER's sentiment of the response), batch, epochs with one
optimiser step each, learning rate, KL coefficient, GAE and clipping; float32, one thread. The clock starts with the
training, when all is loaded. A target is reached with the first step by whose end the mean reward of the last three
steps' responses is at least as high. A run ends with the highest target or after --steps; a target that is not
reached by then is reported as such. Each run is a process of its own; which library goes first changes from seed to
seed. Needs a machine with nothing else to do. Writes benchmarks/results/time_to_reward.json and .md. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from against_trl import HERE, RESULTS, one_run
from reward_task import Task, make_folder, when_reached

ROOT = HERE.parent
RECIPE = ROOT / "recipes" / "stories-sentiment.toml"
LIBRARIES = {"proxlm": "reward_proxlm.py", "TRL 1.12.0": "reward_trl.py"}


def table(found: dict[str, Any]) -> str:
    """Markdown: for each target and library the steps and seconds of every seed, and the ratio of the medians."""
    names = [
        "target",
        "library",
        "steps",
        "seconds",
        "median seconds",
        "TRL's over proxlm's",
        "seconds per step",
    ]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for target in found["targets"]:
        medians: dict[str, float] = {}
        rows = []
        for library, runs in found["runs"].items():
            reached = [when_reached(run["curve"], target) for run in runs.values()]
            steps = ", ".join("–" if r is None else str(r[0]) for r in reached)
            seconds = ", ".join("not reached" if r is None else f"{r[1]:.1f}" for r in reached)
            if all(reached):
                medians[library] = statistics.median(r[1] for r in reached if r)
            each = statistics.median(run["curve"][-1][0] / len(run["curve"]) for run in runs.values())
            rows.append((library, steps, seconds, each))
        for library, steps, seconds, each in rows:
            median = f"{medians[library]:.1f}" if library in medians else "–"
            ratio = medians["TRL 1.12.0"] / medians[library] if len(medians) == len(LIBRARIES) else None
            told = "–" if ratio is None else f"{ratio:.2f}"
            lines.append(f"| {target:g} | {library} | {steps} | {seconds} | {median} | {told} | {each:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trl_python")
    parser.add_argument("--model", type=Path, default=ROOT.parent / "shared" / "models" / "stories260K")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.65, 0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    from proxlm import load_config

    os.chdir(ROOT)  # where the recipe's paths are taken from
    task = Task(max(given.targets), steps=given.steps, threads=given.threads)
    found: dict[str, Any] = {"task": asdict(task), "targets": sorted(given.targets)}
    found["runs"] = {library: {} for library in LIBRARIES}
    pythons = dict(zip(LIBRARIES, (sys.executable, given.trl_python), strict=True))
    with tempfile.TemporaryDirectory() as name:
        make_folder(given.model, load_config("ppo", RECIPE, {}).data, Path(name), seed=0)
        for i, seed in enumerate(given.seeds):
            for library in list(LIBRARIES)[:: -1 if i % 2 else 1]:
                asked = Task(**{**asdict(task), "seed": seed})
                run = one_run(pythons[library], LIBRARIES[library], Path(name), asked, [])
                found["runs"][library][str(seed)] = run
                seconds, reward, _ = run["curve"][-1]
                print(
                    f"{library}, seed {seed}: {len(run['curve'])} steps, {seconds:.0f} s, {reward:.2f}",
                    flush=True,
                )
            (RESULTS / "time_to_reward.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    (RESULTS / "time_to_reward.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
