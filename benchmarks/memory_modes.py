"""The reward that each memory mode reaches on the stories recipe, with its seconds and memory. proxlm alone, CPU.

    python benchmarks/memory_modes.py OUTPUT_FOLDER [--steps 30] [--seeds 0 1 2] [--jobs 2]

Modes: the critic on a trunk of its own or on the policy's, all weights learn; LoRA with a separate critic (adapters
on a copy of the base) or as adapters on the policy's base. The recipe with 64 responses a step instead of 128, and
fewer steps, over which the learning rates fall. All weights learn at the recipe's rates; the rate of the policy's
adapters is chosen first, from three, with a separate critic and a seed that is not used again, by held-out reward
less β times the KL. Activation checkpointing is left out: its numbers are the same. A finished run is not
run again. Writes benchmarks/results/memory_modes.json and .md. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs import evaluated, run_job
from proxlm.runlog.folder import read_jsonl

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPE = "recipes/stories-sentiment.toml"
BETA, TUNING_SEED, RANK = 0.05, 100, 8
RATES = (1e-3, 3e-3, 1e-2)
# Mode → settings.
MODES: dict[str, dict[str, Any]] = {
    "separate critic": {"model.critic": "separate"},
    "shared critic": {"model.critic": "shared"},
    "LoRA (rank 8), separate critic": {"model.critic": "separate", "model.lora.rank": RANK},
    "LoRA (rank 8), adapter critic": {"model.critic": "adapter", "model.lora.rank": RANK},
}
TUNED = "LoRA (rank 8), separate critic"


def run(output: Path, mode: str, seed: int, steps: int, rate: float = 0.0) -> dict[str, Any]:
    """One run; held-out reward [mean, low, high] before and after, KL after, seconds per step, peak MB.

    rate: of the policy, 0 for the recipe's. The peak is of the whole process, Python and torch included.
    """
    settings = {
        **MODES[mode],
        "ppo.steps": steps,
        "ppo.batch_size": 64,
        "ppo.kl_coef": BETA,
        "run.seed": seed,
        "run.threads": 1,
        "run.save_every": 0,
        **({"optim.policy.lr": rate} if rate else {}),
    }
    words = mode.replace("(", "").replace(")", "").replace(",", "").split()
    folder = run_job("ppo", output / "-".join([*words, f"{rate:g}", str(steps), str(seed)]), settings, RECIPE)
    rows = read_jsonl(folder / "metrics.jsonl")
    before, after = (model["metrics"] for model in evaluated(folder))
    return {
        **{
            name: [m["reward"][key] for key in ("mean", "low", "high")]
            for name, m in (("before", before), ("after", after))
        },
        "kl": after["kl"]["mean"],
        "seconds": statistics.median(row["time/step"] for row in rows),
        "peak_mb": rows[-1]["memory_gb"] * 1024,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per mode, the seeds side by side."""
    names = ["mode", "policy's rate", "before, each seed", "after", "KL", "s per step", "peak MB"]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for mode, runs in found["modes"].items():
        cells = [mode, found["rates"][mode]]
        for key in ("before", "after"):
            estimates = [run[key] for run in runs.values()]
            cells.append(", ".join(f"{mean:.3f} ± {(high - low) / 2:.3f}" for mean, low, high in estimates))
        cells.append(", ".join(f"{run['kl']:.1f}" for run in runs.values()))
        cells += [f"{statistics.median(r['seconds'] for r in runs.values()):.2f}"]
        cells += [f"{statistics.median(r['peak_mb'] for r in runs.values()):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tuning-steps", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of adapters, to choose from")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    options = parser.parse_args()
    pool = ThreadPoolExecutor(options.jobs)
    asked = {
        rate: pool.submit(run, options.output, TUNED, TUNING_SEED, options.tuning_steps, rate)
        for rate in options.rates
    }
    tuning = {rate: future.result() for rate, future in asked.items()}
    best = max(tuning, key=lambda rate: tuning[rate]["after"][0] - BETA * tuning[rate]["kl"])
    print({rate: (r["after"][0], r["kl"]) for rate, r in tuning.items()}, "→", best, flush=True)
    found: dict[str, Any] = {"steps": options.steps, "tuning": tuning, "modes": {}}
    found["rates"] = {mode: f"{best:g}" if "LoRA" in mode else "the recipe's" for mode in MODES}
    for mode in MODES:
        rate = best if "LoRA" in mode else 0.0
        runs = {
            str(seed): pool.submit(run, options.output, mode, seed, options.steps, rate)
            for seed in options.seeds
        }
        found["modes"][mode] = {seed: future.result() for seed, future in runs.items()}
        print(mode, found["modes"][mode], flush=True)
        (RESULTS / "memory_modes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "memory_modes.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
