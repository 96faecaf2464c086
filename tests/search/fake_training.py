"""A trainer that learns nothing: its validation loss is a formula of the settings, the seed and the step."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxlm.config import OptimiserSettings, RunSettings, SFTConfig, SupervisedSettings, TextSettings
from proxlm.config.model import ModelSettings
from proxlm.errors import RunError
from proxlm.report.run import Run

STEPS = 9
BASE = SFTConfig(
    model=ModelSettings(policy="model"),
    text=TextSettings(train=["pairs.jsonl"]),
    train=SupervisedSettings(steps=STEPS, batch_tokens=200),
    optim=OptimiserSettings(lr=1e-3),
    run=RunSettings(seed=3),
)
SPACE = {
    "optim.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "optim.name": ["adamw", "sgd"],
    "optim.momentum": {"low": 0.0, "high": 0.9, "when": {"optim.name": "sgd"}},
    "train.batch_tokens": {"low": 100, "high": 400, "step": 100},
}


def loss(settings: SFTConfig, step: int) -> float:
    """Lowest at a rate of 0.01, a little lower with sgd; seeds differ; it falls with the steps."""
    optim = settings.optim
    far = abs(math.log10(optim.lr) + 2) + (0.0 if optim.name == "sgd" else 0.1) * (1 + optim.momentum)
    return far + 1 / step + 0.01 * (settings.run.seed % 3)


class FakeTrainer:
    """Writes a line into steps.txt for each step, and a checkpoint's folder after it."""

    def __init__(self, settings: SFTConfig, callbacks: Sequence[Any]) -> None:
        self.settings, self.callbacks = settings, callbacks

    def train(self) -> Run:
        settings, folder = self.settings, Path(self.settings.run.folder)
        if settings.train.batch_tokens == 400:
            raise RunError("no step could be done with 400 tokens")
        done = sorted(folder.glob("checkpoints/step-*")) if settings.run.resume else []
        first = int(done[-1].name[5:]) + 1 if done else 1
        for step in range(first, STEPS + 1):
            folder.mkdir(parents=True, exist_ok=True)
            with open("steps.txt", "a") as file:
                file.write(f"{os.getpid()} {folder} {step}\n")
            for callback in self.callbacks:
                callback.on_step(step, {"validation_loss": loss(settings, step)})
            (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        steps: list[float | None] = [float(step) for step in range(1, STEPS + 1)]
        losses: list[float | None] = [loss(settings, int(step or 0)) for step in steps]
        columns = {"step": steps, "validation_loss": losses, "loss": losses}
        return Run(folder, "sft", settings, columns, [], {})
