"""PPO steps with and without ppo.prefetch: seconds per step, and the reward that both reach.

    python benchmarks/prefetch.py [--threads 2] [--repeats 3] [--steps 8] [--seeds 3] [--learn-steps 80]

Seconds: a random Llama, and rewards of three kinds: one that waits for each response in turn (a remote judge), one
that computes for as long in Python, and one that takes no time. The two modes alternate, a run each, and the first
step is left out: nothing was prefetched for it. Reward: a smaller model is paid for vowels, with and without the
mode, for each of the seeds. Writes benchmarks/results/prefetch.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_proxlm import QuietLog

from proxlm.config import (
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    OptimisersSettings,
    PPOConfig,
    PPOSettings,
    RolloutSettings,
    RunSettings,
)
from proxlm.config.ppo import CorrectionSettings
from proxlm.data.prompts import PromptStream
from proxlm.data.tokenizer import train_tokenizer
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.load import build_language_model
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Prompt, Rollout, Scores

RESULTS = Path(__file__).parent / "results"
TEXTS = ["The cat sat on the mat and looked at the moon.", "One day a small dog found a big red ball."]
PHASES = ("step", "waiting", "generate", "score", "prepare", "update")
WEIGHTS = ("staleness_weight/mean", "staleness_weight/effective_share")
SEEN = ("rollout_kl", *WEIGHTS, "kl")
Row = dict[str, float]


def vowels(rollout: Rollout) -> Scores:
    """The share of letters that are vowels."""
    return Scores(torch.tensor([sum(c in "aeiou" for c in t) / max(1, len(t)) for t in rollout.texts]))


def waiting(seconds: float) -> Callable[[Rollout], Scores]:
    """The same from a judge that is asked about one response after another."""

    def reward(rollout: Rollout) -> Scores:
        time.sleep(seconds * len(rollout))
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
    prefetch: bool, seed: int, steps: int, size: dict[str, int], reward: Any, lr: float = 1e-3
) -> list[Row]:
    """Train a random model; the rows of metrics. The mode has truncated weights, without it there are none."""
    tokenizer = train_tokenizer(TEXTS * 20, vocabulary=320, context=256)
    torch.manual_seed(seed)
    new = NewModelSettings(hidden=size["hidden"], layers=size["layers"], heads=4, context=256)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu", precision="float32"))
    with torch.no_grad():  # sharp enough that there is something to learn from
        model.network.get_output_embeddings().weight.mul_(8.0)
    correction = CorrectionSettings(mode="token_truncate" if prefetch else "none")
    ppo = PPOSettings(
        steps=steps, batch_size=size["batch"], epochs=2, minibatches=2, kl_coef=0.01,
        prefetch=prefetch, staleness_correction=correction,
    )  # fmt: skip
    config = PPOConfig(
        model=ModelSettings(policy="random", critic="separate", device="cpu"),
        rollout=RolloutSettings(max_new_tokens=size["length"], batch_size=size["batch"]),
        ppo=ppo,
        optim=OptimisersSettings(OptimiserSettings(lr=lr), OptimiserSettings(lr=lr)),
        run=RunSettings(seed=seed, save_every=0),
    )
    texts = [text[: 4 + 3 * i] for i in range(8) for text in TEXTS]
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    stream, log = PromptStream(prompts, ppo.batch_size, seed), QuietLog()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOLoop(config, make_actor_critic(model, "separate"), stream, reward, Path(folder) / "run")
        trainer.train(log)  # type: ignore[arg-type]
    return log.rows


def seconds(given: argparse.Namespace, reward: Any) -> dict[str, Any]:
    """Medians of a step's seconds by phase, of all runs of each mode, which alternate."""
    rows: dict[str, list[Row]] = {"off": [], "prefetch": []}
    size = {"hidden": given.hidden, "layers": given.layers, "batch": 32, "length": 32}
    for repeat in range(given.repeats):
        for mode, found in rows.items():
            found += run(mode == "prefetch", repeat, given.steps, size, reward)[1:]
    result: dict[str, Any] = {
        mode: {
            phase: statistics.median(values)
            for phase in PHASES
            if (values := [row[f"time/{phase}"] for row in found if f"time/{phase}" in row])
        }
        for mode, found in rows.items()
    }
    result["steps_measured"] = len(rows["off"])
    result["quicker"] = result["off"]["step"] / result["prefetch"]["step"]
    return result


def learning(given: argparse.Namespace) -> dict[str, Any]:
    """For each mode and seed: the mean reward of the first and the last tenth of the steps, and the mismatch."""
    size = {"hidden": 32, "layers": 2, "batch": 24, "length": 12}
    share = max(1, given.learn_steps // 10)
    result: dict[str, Any] = {"off": [], "prefetch": []}
    for seed in range(given.seeds):
        for mode, found in result.items():
            rows = run(mode == "prefetch", seed, given.learn_steps, size, vowels, lr=3e-3)
            means = {name: statistics.fmean(row.get(name, 1.0) for row in rows) for name in SEEN}
            first, last = (statistics.fmean(r["reward"] for r in p) for p in (rows[:share], rows[-share:]))
            found.append({"seed": seed, "first": first, "last": last, **means})
            print(
                f"seed {seed}, {mode}: reward {first:.3f} → {last:.3f}, KL to what sampled {means['rollout_kl']:.2g}",
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
    parser.add_argument("--waits", type=float, default=0.05)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "prefetch.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    kinds = {"waits": waiting(given.waits), "computes": computing(given.waits), "takes no time": vowels}
    found: dict[str, Any] = {
        "settings": {n: v for n, v in vars(given).items() if n != "output"},
        "seconds": {},
    }
    for name, reward in kinds.items():
        found["seconds"][name] = row = seconds(given, reward)
        off, on = row["off"]["step"], row["prefetch"]["step"]
        print(
            f"reward {name}: {off:.2f} s a step, prefetch {on:.2f} s, {row['quicker']:.2f} times", flush=True
        )
    found["learning"] = learning(given)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
