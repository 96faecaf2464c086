"""Partial against whole rollouts at ppo.max_staleness = 4: the reward of a task that learns in seconds, and the ages.

    python benchmarks/partial_rollouts.py [--seeds 12] [--steps 24] [--lr 3e-3] [--arms …]

The task of mismatch.py: a random Llama of 2 layers × 32 that is paid for vowels, 24 responses of 12 tokens a step,
at a rate far above a real run's, so that a few updates matter. Weights are token_truncate. Reward: mean of all steps;
KL to what sampled: mean from step 9 on; differences are paired by seed, with Student's interval of 95%. Writes
benchmarks/results/partial_rollouts.json after each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from vowel_task import Size, learn

from proxlm.config.ppo import CorrectionSettings
from proxlm.evaluation.intervals import mean_with_interval

RESULT = Path(__file__).parent / "results" / "partial_rollouts.json"
ARMS = {"0": (0, False), "2 whole": (2, False), "4 whole": (4, False), "4 partial": (4, True)}
SETTLED = 8


def run(arm: str, seed: int, steps: int, lr: float) -> dict[str, float]:
    """The numbers of one run."""
    k, partial = ARMS[arm]
    correction = CorrectionSettings(mode="token_truncate" if k else "none")
    ppo = {"max_staleness": k, "partial_rollouts": partial, "staleness_correction": correction}
    rows = learn(seed, steps, lr, Size(), ppo=ppo)
    found = {
        name: statistics.fmean(row[name] for row in rows[SETTLED:]) for name in ("staleness", "rollout_kl")
    }
    generate = statistics.median(row["time/generate"] for row in rows[SETTLED:])
    return {"reward": statistics.fmean(row["reward"] for row in rows), "generate": generate, **found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):
        for arm, rows in found.items():
            rows.append(run(arm, seed, given.steps, given.lr))
        print(seed, {arm: round(rows[-1]["reward"], 3) for arm, rows in found.items()}, flush=True)
        write(given, found)


def write(given: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    """The runs, their means, and what partial rollouts gain."""
    settings = {name: value for name, value in vars(given).items() if name != "output"}
    means = {
        arm: {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
        for arm, rows in found.items()
    }
    gains: dict[str, Any] = {}
    for arm, rows in found.items():
        pairs = zip(found["4 partial"], rows, strict=True)
        if arm != "4 partial" and len(rows) > 1:
            gain = mean_with_interval([one["reward"] - other["reward"] for one, other in pairs])
            gains[arm] = [gain.mean, gain.low, gain.high]
    content = {"settings": settings, "means": means, "partial minus": gains, "runs": found}
    given.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
