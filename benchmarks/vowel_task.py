"""A random Llama that is paid for vowels: PPO without a folder, for benchmarks of where rollouts come from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
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
from proxlm.data.prompts import PromptStream
from proxlm.data.tokenizer import train_tokenizer
from proxlm.models.actor_critic import make_actor_critic
from proxlm.models.load import build_language_model
from proxlm.train.ppo.loop import PPOLoop
from proxlm.types import Prompt, Rollout, Scores

TEXTS = ["The cat sat on the mat and looked at the moon.", "One day a small dog found a big red ball."]
Row = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Of the model and of a step; the standard one learns in seconds."""

    hidden: int = 32
    layers: int = 2
    batch: int = 24
    length: int = 12


def vowels(rollout: Rollout) -> Scores:
    """The share of letters that are vowels."""
    return Scores(torch.tensor([sum(c in "aeiou" for c in t) / max(1, len(t)) for t in rollout.texts]))


def learn(
    seed: int,
    steps: int,
    lr: float,
    size: Size,
    *,
    ppo: dict[str, Any] | None = None,
    rollout: dict[str, Any] | None = None,
    reward: Callable[[Rollout], Scores] = vowels,
) -> list[Row]:
    """Train a random model; the rows of metrics.

    Args:
        seed: Of the weights and of the run.
        steps: PPO steps, of 2 epochs × 2 minibatches.
        lr: Of policy and critic.
        size: Of the model and of a step.
        ppo: More of its settings.
        rollout: More of its settings.
        reward: Of a step's responses.
    """
    tokenizer = train_tokenizer(TEXTS * 20, vocabulary=320, context=256)
    torch.manual_seed(seed)
    new = NewModelSettings(hidden=size.hidden, layers=size.layers, heads=4, context=256)
    model = build_language_model(new, tokenizer, ModelSettings(device="cpu", precision="float32"))
    with torch.no_grad():  # sharp enough that there is something to learn from
        model.network.get_output_embeddings().weight.mul_(8.0)
    config = PPOConfig(
        model=ModelSettings(policy="random", critic="separate", device="cpu"),
        rollout=RolloutSettings(max_new_tokens=size.length, batch_size=size.batch, **(rollout or {})),
        ppo=PPOSettings(
            steps=steps, batch_size=size.batch, epochs=2, minibatches=2, kl_coef=0.01, **(ppo or {})
        ),
        optim=OptimisersSettings(OptimiserSettings(lr=lr), OptimiserSettings(lr=lr)),
        run=RunSettings(seed=seed, save_every=0),
    )
    texts = [text[: 4 + 3 * i] for i in range(8) for text in TEXTS]
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    stream, log = PromptStream(prompts, config.ppo.batch_size, seed), QuietLog()
    with tempfile.TemporaryDirectory() as folder:
        loop = PPOLoop(config, make_actor_critic(model, "separate"), stream, reward, Path(folder) / "run")
        loop.train(log)  # type: ignore[arg-type]
    return log.rows
