"""Rollouts by another policy on purpose: what each correction weighs, drops and learns.

    python benchmarks/mismatch.py                  # into benchmarks/results/mismatch.{json,md}
    python benchmarks/mismatch.py --seeds 1 --steps 20 --results other

The rollouts are stale by 0, 1, 2, 4 or 8 updates, or of int8 weights, or both. For each mode of the correction of
that cause: how far the policies are apart, the effective share of the weights, the share of tokens dropped, and the
mean reward of all steps; its difference to the run of the same seed without a correction, over seeds. Everything else
is equal, the number of tokens nearly so. A cell that the results hold, with the same seeds, steps and rate, is not
run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from vowel_task import Row, Size, learn

from proxlm.config.ppo import CorrectionSettings
from proxlm.evaluation.intervals import mean_with_interval

RESULTS = Path(__file__).parent / "results"
MODES = (
    "none",
    "token",
    "token_truncate",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_mask",
)
CASES = [(0, "policy"), (1, "policy"), (2, "policy"), (4, "policy"), (8, "policy"), (0, "int8"), (4, "int8")]
# Every cell, in the order of the table.
ORDER = [(s, w, m) for s, w in CASES for m in (MODES if s or w != "policy" else ("none",))]
NUMBERS = ("kl", "effective_share", "dropped_share")
# Rows before this step are left out of the numbers of a weight: the rollouts are not as stale yet.
SETTLED = 8

HEAD = """# Rollouts by another policy, on purpose

`python benchmarks/mismatch.py --seeds {seeds} --steps {steps} --lr {lr:g}`, on one of two CPU cores that others used,
too. A random Llama of 2 layers × 32; 24 responses of up to 12 tokens a step, 2 epochs × 2 minibatches, learning rate
{lr:g}: far more than a real run's, so that eight updates matter. The reward is the share of vowels.

KL: in nats a token, from the policy that sampled to the trainer's (k3), from step {settled} on. Reward: mean of all
steps, so that faster is more, and of the seeds (lowest – highest). Against none: the mean difference to the same
seeds without a correction, with the 95% interval of Student's t over the seeds, where the results hold each seed.
The mode is that of each cause there is; the numbers of the weight are the staleness's where there is staleness, else
the engine's.

| stale by | weights | mode | KL | effective share | dropped | reward | against none |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def run(staleness: int, weights: Any, mode: Any, seed: int, steps: int, lr: float) -> list[Row]:
    """Train a random model with this mode for each cause that there is; the rows of metrics."""
    on, off = CorrectionSettings(mode=mode), CorrectionSettings()
    ppo = {
        "engine_correction": on if weights != "policy" else off,
        "staleness_correction": on if staleness else off,
        "max_staleness": staleness,
    }
    return learn(seed, steps, lr, Size(), ppo=ppo, rollout={"weights": weights})


def summary(runs: list[list[Row]], cause: str) -> dict[str, Any]:
    """The numbers of one case and mode over seeds; those of the weight from the step on in which it matters."""
    means = [statistics.fmean(row["reward"] for row in rows) for rows in runs]
    found: dict[str, Any] = {"reward": statistics.fmean(means), "lowest": min(means), "highest": max(means)}
    found["seeds"] = means
    settled = [row for rows in runs for row in rows[SETTLED:]]
    found["rollout_kl"] = statistics.fmean(row["rollout_kl"] for row in settled)
    for name in NUMBERS:
        values = [row[key] for row in settled if (key := f"{cause}_weight/{name}") in row]
        if values:
            found[name] = statistics.fmean(values)
    return found


def table(found: dict[str, Any]) -> str:
    """mismatch.md."""
    lines = [HEAD.format(**found["settings"], settled=SETTLED + 1)]
    cells = {key_of(cell): cell for cell in found["cells"]}
    for (staleness, weights, mode), cell in cells.items():
        effective, dropped = (f"{cell[n]:.3f}" if n in cell else "" for n in NUMBERS[1:])
        numbers = [f"{cell['rollout_kl']:.2g}", effective, dropped]
        numbers.append(f"{cell['reward']:.3f} ({cell['lowest']:.3f} – {cell['highest']:.3f})")
        numbers.append("" if mode == "none" else against(cell, cells.get((staleness, weights, "none"), {})))
        lines.append(f"| {' | '.join(map(str, [staleness, weights, mode, *numbers]))} |")
    return "\n".join([*lines, ""])


def against(cell: dict[str, Any], none: dict[str, Any]) -> str:
    """The paired difference of two cells' rewards; nothing where one does not hold its seeds."""
    if "seeds" not in cell or "seeds" not in none:
        return ""
    gain = mean_with_interval([one - other for one, other in zip(cell["seeds"], none["seeds"], strict=True)])
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def key_of(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["staleness"], cell["weights"], cell["mode"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--stale", type=int, nargs="+", default=sorted({s for s, _ in CASES}))
    parser.add_argument("--weights", nargs="+", default=["policy", "int8"], choices=["policy", "int8"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--results", type=Path, default=RESULTS / "mismatch")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = given.results.with_suffix(".json")
    settings = {name: getattr(given, name) for name in ("seeds", "steps", "lr")}
    found: dict[str, Any] = {"settings": settings, "cells": []}
    if file.exists() and (known := json.loads(file.read_text("utf-8")))["settings"] == settings:
        found = known
    cells = {key_of(cell): cell for cell in found["cells"]}
    for staleness, weights, mode in ORDER:
        asked = staleness in given.stale and weights in given.weights and mode in given.modes
        if not asked or (staleness, weights, mode) in cells:
            continue
        runs = [run(staleness, weights, mode, seed, given.steps, given.lr) for seed in range(given.seeds)]
        cell = {"staleness": staleness, "weights": weights, "mode": mode}
        cell |= summary(runs, "staleness" if staleness else "engine")
        cells[key_of(cell)] = cell
        print(json.dumps(cell), flush=True)
        found["cells"] = [cells[key] for key in ORDER if key in cells]
        file.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        given.results.with_suffix(".md").write_text(table(found), "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
