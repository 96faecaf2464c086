"""PPO, GRPO, RLOO, REINFORCE++ and TRPO on one task: the same generated tokens, learning rates tuned equally.

    python benchmarks/compare_algorithms.py RECIPE OUTPUT_FOLDER [--jobs 2]

Each algorithm runs 25 steps with each of its five step sizes (a factor of 3 apart) on a seed that is not used
again; the one with the best held-out reward less β times the KL then runs 40 steps on seeds 0, 1 and 2. A finished
run is not run again. Writes compare.json and compare.md into the folder.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs import evaluated, run_job
from proxlm.runlog.folder import read_jsonl

BETA = 0.05
GROUPS = {"ppo.samples_per_prompt": 4, "ppo.batch_size": 16}
SINGLE = {"ppo.samples_per_prompt": 1, "ppo.batch_size": 64}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "PPO": {**SINGLE, "ppo.advantage": "gae"},
    "GRPO": {
        **GROUPS,
        "ppo.advantage": "grpo",
        "ppo.kl_in": "loss",
        "ppo.kl_estimator": "k3",
        # Its rewards are divided by their spread in a group, about 0.3 here at the start, and its KL is not.
        "ppo.kl_coef": round(BETA / 0.3, 3),
    },
    "RLOO": {**GROUPS, "ppo.advantage": "rloo"},
    "REINFORCE++": {**SINGLE, "ppo.advantage": "reinforce++"},
    "TRPO": {**SINGLE, "ppo.loss": "trpo", "model.critic": "separate", "ppo.trpo.fisher_share": 0.25},
}
RATES = dict.fromkeys(ALGORITHMS, ("optim.policy.lr", (0.00003, 0.0001, 0.0003, 0.001, 0.003)))
RATES["TRPO"] = ("ppo.trpo.delta", (0.001, 0.003, 0.01, 0.03, 0.1))
TUNING_SEED, SEEDS = 100, (0, 1, 2)
STEPS, TUNING_STEPS = 40, 25


def run(recipe: str, folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """One run, if it has not been made; returns its held-out numbers after training, and its seconds."""
    run_job("ppo", folder, settings, recipe)
    models, rows = evaluated(folder), read_jsonl(folder / "metrics.jsonl")
    after = {name: estimate["mean"] for name, estimate in models[1]["metrics"].items()}
    after["before"] = models[0]["metrics"]["reward"]["mean"]
    after["seconds"] = rows[-1]["time"]
    return after


def compare(recipe: str, output: Path, jobs: int) -> dict[str, Any]:
    """Tune, then run the seeds."""
    common = {
        "run.threads": 1,
        "run.save_every": 0,
        "ppo.kl_coef": BETA,
        "rollout.max_new_tokens": 24,
    }

    def one(name: str, rate: float, seed: int) -> dict[str, float]:
        steps = TUNING_STEPS if seed == TUNING_SEED else STEPS
        settings = {**common, **ALGORITHMS[name], RATES[name][0]: rate, "run.seed": seed, "ppo.steps": steps}
        return run(recipe, output / f"{name.lower()}-{rate:g}-{seed}", settings)

    with ThreadPoolExecutor(jobs) as pool:
        tuning = {
            name: {rate: pool.submit(one, name, rate, TUNING_SEED) for rate in RATES[name][1]}
            for name in ALGORITHMS
        }
        tuned = {name: {rate: f.result() for rate, f in row.items()} for name, row in tuning.items()}
        best = {
            name: max(row, key=lambda rate, r=row: r[rate]["reward"] - BETA * r[rate]["kl"])  # type: ignore[misc]
            for name, row in tuned.items()
        }
        final = {name: [pool.submit(one, name, best[name], seed) for seed in SEEDS] for name in ALGORITHMS}
        results = {name: [f.result() for f in futures] for name, futures in final.items()}
    return {"recipe": recipe, "tuning": tuned, "chosen": best, "seeds": results}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per algorithm, the numbers of the three seeds side by side."""
    lines = ["| algorithm | step size | reward | KL | reward − β KL | distinct-2 | seconds |", "| --- |" * 7]
    lines[1] = "| --- " * 7 + "|"
    for name, runs in found["seeds"].items():
        cells = [
            ", ".join(f"{r['reward']:.3f}" for r in runs),
            ", ".join(f"{r['kl']:.2f}" for r in runs),
            ", ".join(f"{r['reward'] - BETA * r['kl']:.3f}" for r in runs),
            ", ".join(f"{r['distinct_2']:.2f}" for r in runs),
            ", ".join(f"{r['seconds']:.0f}" for r in runs),
        ]
        lines.append(f"| {name} | {found['chosen'][name]:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("output", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    found = compare(given.recipe, given.output, given.jobs)
    (given.output / "compare.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (given.output / "compare.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
