"""Does bf16 train as well as float32? The stories recipe in both, with the same seeds.

    python benchmarks/bf16.py OUTPUT_FOLDER [--seeds 0 1 2] [--steps 100] [--model FOLDER]

On a processor without instructions for bf16 torch emulates it, far slower than float32. Runs go into
OUTPUT_FOLDER/PRECISION-SEED; finished ones are only read. Prints the table; writes it to benchmarks/results/bf16.md,
and the numbers to bf16.json (--results: another folder).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from jobs import evaluated, run_job
from proxlm.runlog.folder import read_jsonl

RECIPE = "recipes/stories-sentiment.toml"
PRECISIONS = ("float32", "bfloat16")
# The 97.5% point of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One run, if it has not been made: held-out reward before and after, KL, and how exact the passes were."""
    run_job("ppo", folder, settings, RECIPE)
    before, after = evaluated(folder)
    rows = read_jsonl(folder / "metrics.jsonl")
    return {
        "before": before["metrics"]["reward"],
        "after": after["metrics"]["reward"],
        "kl": after["metrics"]["kl"],
        "ratio_error": max(row["first_minibatch/ratio_error"] for row in rows),
        "rollout_gap": statistics.median(row["rollout_gap"] for row in rows),
        "minutes": rows[-1]["time"] / 60,
    }


def interval(estimate: dict[str, float]) -> str:
    """mean [low, high]."""
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def table(found: dict[str, list[dict[str, Any]]], seeds: list[int]) -> str:
    """Markdown: a row per run, then the difference over the seeds."""
    heads = ("precision", "seed", "held-out reward before", "after", "KL, nats", "largest error of the first"
             " ratio", "rollout gap, nats", "minutes")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for precision in PRECISIONS:
        for seed, numbers in zip(seeds, found[precision], strict=True):
            cells = [
                precision,
                str(seed),
                interval(numbers["before"]),
                interval(numbers["after"]),
                interval(numbers["kl"]),
                f"{numbers['ratio_error']:.2g}",
                f"{numbers['rollout_gap']:.2g}",
                f"{numbers['minutes']:.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", difference(found)]) + "\n"


def difference(found: dict[str, list[dict[str, Any]]]) -> str:
    """bfloat16 − float32 of the reward after training, seed by seed, with Student's interval over the seeds."""
    whole, half = ([numbers["after"]["mean"] for numbers in found[name]] for name in PRECISIONS)
    differences = [b - a for a, b in zip(whole, half, strict=True)]
    text = f"bfloat16 − float32, reward after training: {statistics.mean(differences):+.3f}"
    factor = STUDENT.get(len(differences) - 1)
    if factor is None:
        return f"{text} ({len(differences)} seeds: no interval)"
    width = factor * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{text} ± {width:.3f} (95%, Student's t over {len(differences)} seeds)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default="../shared/models/stories260K")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    common = {
        "model.policy": options.model,
        "ppo.steps": options.steps,
        "run.threads": options.threads,
        "run.save_every": 0,
    }
    # Seed by seed, so that both precisions meet the same machine.
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in PRECISIONS}
    for seed in options.seeds:
        for name in PRECISIONS:
            settings = {**common, "run.seed": seed, "model.precision": name}
            found[name].append(run(options.output / f"{name}-{seed}", settings))
    options.results.mkdir(parents=True, exist_ok=True)
    numbers = {"recipe": RECIPE, "steps": options.steps, "seeds": options.seeds, "runs": found}
    (options.results / "bf16.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    text = table(found, options.seeds)
    (options.results / "bf16.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
