"""PPO steps with ppo.max_staleness 0, 1 and 4: seconds per step, and the reward that both reach.

    python benchmarks/staleness.py [--threads 2] [--repeats 3] [--steps 8] [--seeds 3] [--learn-steps 80]
        [--rewards waits unevenly computes quick] [--values 0 1 4]

Seconds: a random Llama, and rewards of four kinds: one that waits for each response in turn (a remote judge), one
that waits as long on average, but for every fourth rollout alone, one that computes for as long in Python, and one
that takes no time. The values alternate, a run each, and the first step is left out: nothing was sampled ahead for
it. Reward: a smaller model is paid for vowels, with each value, for each of the seeds. Writes
benchmarks/results/staleness.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vowel_task import Row, Size, learn, vowels

from proxlm.config.ppo import CorrectionSettings
from proxlm.types import Rollout, Scores

RESULTS = Path(__file__).parent / "results"
PHASES = ("step", "waiting", "generate", "score", "prepare", "update")
WEIGHTS = ("staleness_weight/mean", "staleness_weight/effective_share")
SEEN = ("rollout_kl", *WEIGHTS, "kl")


def waiting(seconds: float) -> Callable[[Rollout], Scores]:
    """The same from a judge that is asked about one response after another."""

    def reward(rollout: Rollout) -> Scores:
        time.sleep(seconds * len(rollout))
        return vowels(rollout)

    return reward


def uneven(seconds: float) -> Callable[[Rollout], Scores]:
    """The same from a judge that makes every fourth rollout of a run wait for all four."""
    calls = itertools.count()

    def reward(rollout: Rollout) -> Scores:
        if next(calls) % 4 == 3:
            time.sleep(4 * seconds * len(rollout))
        return vowels(rollout)

    return reward


def computing(seconds: float) -> Callable[[Rollout], Scores]:
    """The same from a function that needs the processor, and Python's lock, for as long."""

    def reward(rollout: Rollout) -> Scores:
        until = time.thread_time() + seconds * len(rollout)
        while time.thread_time() < until:
            sum(range(1000))
        return vowels(rollout)

    return reward


def run(
    k: int, seed: int, steps: int, size: Size, reward: Callable[[Rollout], Scores], lr: float = 1e-3
) -> list[Row]:
    """The rows of metrics of a run; weights are truncated where it is stale."""
    correction = CorrectionSettings(mode="token_truncate" if k else "none")
    ppo = {"max_staleness": k, "staleness_correction": correction}
    return learn(seed, steps, lr, size, ppo=ppo, reward=reward)


def seconds(given: argparse.Namespace, reward: Callable[[], Any]) -> dict[str, Any]:
    """Medians of a step's seconds by phase, and the mean of the whole, of all runs of each value, which alternate."""
    rows: dict[str, list[Row]] = {k: [] for k in given.values}
    size = Size(given.hidden, given.layers, batch=32, length=32)
    for repeat in range(given.repeats):
        for k, found in rows.items():
            found += run(int(k), repeat, given.steps, size, reward())[1:]
    result: dict[str, Any] = {
        k: {
            "mean": statistics.fmean(row["time/step"] for row in found),
            **{
                phase: statistics.median(values)
                for phase in PHASES
                if (values := [row[f"time/{phase}"] for row in found if f"time/{phase}" in row])
            },
        }
        for k, found in rows.items()
    }
    result["steps_measured"] = len(rows[given.values[0]])
    return result


def learning(given: argparse.Namespace) -> dict[str, Any]:
    """For each value and seed: the mean reward of the first and the last tenth of the steps, and the mismatch."""
    share = max(1, given.learn_steps // 10)
    result: dict[str, Any] = {k: [] for k in given.values}
    for seed in range(given.seeds):
        for k, found in result.items():
            rows = run(int(k), seed, given.learn_steps, Size(), vowels, lr=3e-3)
            means = {name: statistics.fmean(row.get(name, 1.0) for row in rows) for name in SEEN}
            first, last = (statistics.fmean(r["reward"] for r in p) for p in (rows[:share], rows[-share:]))
            found.append({"seed": seed, "first": first, "last": last, **means})
            print(
                f"seed {seed}, max_staleness {k}: reward {first:.3f} → {last:.3f},"
                f" KL to what sampled {means['rollout_kl']:.2g}",
                flush=True,
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learn-steps", type=int, default=80)
    parser.add_argument("--values", nargs="+", default=["0", "1", "4"])
    parser.add_argument("--rewards", nargs="+", default=["waits", "unevenly", "computes", "quick"])
    parser.add_argument("--waits", type=float, default=0.05)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "staleness.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kinds: dict[str, Callable[[], Any]] = {
        "waits": lambda: waiting(given.waits),
        "unevenly": lambda: uneven(given.waits),
        "computes": lambda: computing(given.waits),
        "quick": lambda: vowels,
    }
    found: dict[str, Any] = {
        "settings": {n: v for n, v in vars(given).items() if n != "output"},
        "seconds": {},
    }
    for name in given.rewards:
        found["seconds"][name] = row = seconds(given, kinds[name])
        took = ", ".join(f"{row[k]['mean']:.2f} s at {k}" for k in given.values)
        print(f"reward {name}: mean step {took}", flush=True)
    if given.learn_steps:
        found["learning"] = learning(given)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
