"""The recipe of the stories with rollouts 0, 1 and 4 updates stale, with and without the weights for it.

    python benchmarks/stale_stories.py [--steps 16] [--batch 16] [--rate 5e-4] [--seeds 0 1 2] [--arms "4 partial" …]

Reward and KL of 48 held-out prompts at the end, the reward of the last quarter's rollouts ("late"), seconds of a
step, all tokens' mean age. "Truncated" is token_truncate; "no weights" is geometric_mask with bounds that keep every
response; "partial" has truncated weights and `ppo.partial_rollouts`. Writes benchmarks/results/stale_stories.json
after each run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from proxlm import PPOTrainer, load_config
from proxlm.kernels.startup import start
from proxlm.runlog.folder import read_jsonl

RESULT = Path(__file__).parent / "results" / "stale_stories.json"
RECIPE = Path(__file__).parents[1] / "recipes" / "stories-sentiment.toml"
WEIGHTS: dict[str, dict[str, Any]] = {
    "truncated": {"mode": "token_truncate"},
    "no weights": {"mode": "geometric_mask", "low": 0.0, "high": 1e9},
}
WEIGHTS["partial"] = WEIGHTS["truncated"]
ARMS = ["0 no weights", "1 truncated", "1 no weights", "4 truncated", "4 no weights", "4 partial"]


def run(arm: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one run."""
    k, weights = int(arm[0]), arm[2:]
    settings = {
        "ppo.max_staleness": k,
        "ppo.partial_rollouts": weights == "partial",
        "ppo.steps": given.steps,
        "ppo.batch_size": given.batch,
        "data.eval_count": 48,
        "ppo.epochs": 2,
        "rollout.max_new_tokens": 24,
        "optim.policy.lr": given.rate,
        "run.seed": seed,
        "run.save_every": 0,
        "run.report": False,
        "run.tensorboard": False,
        "run.threads": 1,
        **(
            {f"ppo.staleness_correction.{name}": value for name, value in WEIGHTS[weights].items()}
            if k
            else {}
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("ppo", str(RECIPE), {**settings, "run.folder": f"{folder}/run"})
        began = time.process_time()
        found = PPOTrainer(config=config).train()
        rows = read_jsonl(Path(folder) / "run" / "metrics.jsonl")
    late = rows[-(given.steps // 4) :]
    assert found.before is not None
    assert found.after is not None
    return {
        "k": k,
        "weights": weights,
        "seed": seed,
        "before": found.before.metrics["reward"].mean,
        "reward": found.after.metrics["reward"].mean,
        "kl": found.after.metrics["kl"].mean,
        "late": statistics.fmean(row["reward"] for row in late),
        "rollout_kl": statistics.fmean(row["rollout_kl"] for row in late),
        "age": statistics.fmean(row["staleness"] for row in late),
        "seconds": statistics.median(row["time/step"] for row in rows[1:]),
        "cpu": time.process_time() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    start(threads=1)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for arm in given.arms:
            rows.append(run(arm, seed, given))
            print(rows[-1], flush=True)
            settings = {name: value for name, value in vars(given).items() if name != "output"}
            given.output.write_text(
                json.dumps({"settings": settings, "runs": rows}, indent=1) + "\n", encoding="utf-8"
            )


if __name__ == "__main__":
    main()
