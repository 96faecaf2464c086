"""Rollouts by another policy on purpose: what each correction weighs, drops and learns.

    python benchmarks/mismatch.py                  # into benchmarks/results/mismatch.{json,md}
    python benchmarks/mismatch.py --seeds 1 --steps 20 --print

The rollouts are stale by 0, 1, 4 or 8 updates, or of int8 weights, or both. For each mode of the correction of that
cause: how far the policies are apart, the effective share of the weights, the share of tokens dropped, and the mean
reward of all steps, with its range over seeds. Everything else is equal, the number of tokens nearly so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from prefetch import TEXTS, QuietLog, vowels
from torch import Tensor

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
from proxlm.engine.native import NativeEngine
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.language_model import LanguageModel
from proxlm.models.load import build_language_model
from proxlm.train.common.clock import Clock
from proxlm.train.ppo.collect import Collected
from proxlm.train.ppo.loop import PPOLoop
from proxlm.train.ppo.prefetch import Collect, Collector, frozen_copy
from proxlm.types import Prompt

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
CASES = [(0, "policy"), (1, "policy"), (4, "policy"), (8, "policy"), (0, "int8"), (4, "int8")]
NUMBERS = ("kl", "effective_share", "dropped_share")

HEAD = """# Rollouts by another policy, on purpose

`python benchmarks/mismatch.py --seeds {seeds} --steps {steps}`, {minutes:.0f} minutes on two CPU cores that others
used, too. A random Llama of 2 layers × 32; 24 responses of up to 12 tokens a step, 2 epochs × 2 minibatches, learning
rate 3e-3: far more than a real run's, so that eight updates matter. The reward is the share of vowels.

KL: in nats a token, from the policy that sampled to the trainer's (k3), from step 9 on. Reward: mean of all
steps, so that faster is more, and of the seeds (lowest – highest). The mode is that of each cause there is; the
numbers of the weight are the staleness's where there is staleness, else the engine's.

| stale by | weights | mode | KL | effective share | dropped | reward |
| --- | --- | --- | --- | --- | --- | --- |"""


class Late(Collector):
    """Each step's rollout, sampled by the policy of `staleness` updates ago (the first one until there is such)."""

    def __init__(self, policy: LanguageModel, settings: RolloutSettings, staleness: int) -> None:
        super().__init__(policy, NativeEngine(frozen_copy(policy), settings))
        self.kept: deque[tuple[int, list[tuple[str, Tensor]]]] = deque(maxlen=staleness + 1)

    def take(self, collect: Collect, step: int, draw: int, clock: Clock) -> Collected:
        self.kept.append((step, [(name, p.detach().clone()) for name, p in self.policy.trainable()]))
        version, weights = self.kept[0]
        self.engine.load_weights(weights, version)
        return collect(self.engine, step, draw, clock)


def run(staleness: int, weights: Any, mode: Any, seed: int, steps: int) -> list[dict[str, float]]:
    """Train a random model with this mode for each cause that there is; the rows of metrics."""
    tokenizer = train_tokenizer(TEXTS * 20, vocabulary=320, context=256)
    torch.manual_seed(seed)
    new = NewModelSettings(hidden=32, layers=2, heads=4, context=256)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu", precision="float32"))
    with torch.no_grad():  # sharp enough that there is something to learn from
        model.network.get_output_embeddings().weight.mul_(8.0)
    on, off = CorrectionSettings(mode=mode), CorrectionSettings()
    ppo = PPOSettings(
        steps=steps, batch_size=24, epochs=2, minibatches=2, kl_coef=0.01,
        engine_correction=on if weights != "policy" else off, staleness_correction=on if staleness else off,
    )  # fmt: skip
    config = PPOConfig(
        model=ModelSettings(policy="random", critic="separate", device="cpu"),
        rollout=RolloutSettings(max_new_tokens=12, weights=weights),
        ppo=ppo,
        optim=OptimisersSettings(OptimiserSettings(lr=3e-3), OptimiserSettings(lr=3e-3)),
        run=RunSettings(seed=seed, save_every=0),
    )
    texts = [text[: 4 + 3 * i] for i in range(8) for text in TEXTS]
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    stream, log = PromptStream(prompts, ppo.batch_size, seed), QuietLog()
    with tempfile.TemporaryDirectory() as folder:
        loop = PPOLoop(config, make_actor_critic(model, "separate"), stream, vowels, Path(folder) / "run")
        loop.collector = Late(model, config.rollout, staleness)
        loop.train(log)  # type: ignore[arg-type]
    return log.rows


def summary(runs: list[list[dict[str, float]]], cause: str) -> dict[str, Any]:
    """The numbers of one case and mode over seeds; those of the weight from the step on in which it matters."""
    means = [statistics.fmean(row["reward"] for row in rows) for rows in runs]
    found: dict[str, Any] = {"reward": statistics.fmean(means), "lowest": min(means), "highest": max(means)}
    found["rollout_kl"] = statistics.fmean(row["rollout_kl"] for rows in runs for row in rows[8:])
    for name in NUMBERS:
        values = [row[key] for rows in runs for row in rows[8:] if (key := f"{cause}_weight/{name}") in row]
        if values:
            found[name] = statistics.fmean(values)
    return found


def table(results: list[dict[str, Any]], given: argparse.Namespace, minutes: float) -> str:
    lines = [HEAD.format(seeds=given.seeds, steps=given.steps, minutes=minutes)]
    for row in results:
        effective, dropped = (f"{row[n]:.3f}" if n in row else "" for n in NUMBERS[1:])
        cells = [
            row["staleness"],
            row["weights"],
            row["mode"],
            f"{row['rollout_kl']:.2g}",
            effective,
            dropped,
        ]
        reward = f"{row['reward']:.3f} ({row['lowest']:.3f} – {row['highest']:.3f})"
        lines.append(f"| {' | '.join(map(str, cells))} | {reward} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--print", action="store_true", help="write nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results, start = list[dict[str, Any]](), time.monotonic()
    for staleness, weights in CASES:
        cause = "staleness" if staleness else "engine"
        for mode in MODES if staleness or weights != "policy" else ("none",):
            runs = [run(staleness, weights, mode, seed, given.steps) for seed in range(given.seeds)]
            results.append({"staleness": staleness, "weights": weights, "mode": mode, **summary(runs, cause)})
            print(json.dumps(results[-1]), flush=True)
    text = table(results, given, (time.monotonic() - start) / 60)
    if not given.print:
        (RESULTS / "mismatch.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (RESULTS / "mismatch.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
