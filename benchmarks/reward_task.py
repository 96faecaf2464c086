"""The task that two libraries are timed on until a mean reward, and a run's curve, for `time_to_reward.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WINDOW = 3


@dataclass(frozen=True)
class Task:
    """Settings that both are given. threads: of the process; goal: the run ends once it has this mean reward."""

    goal: float
    seed: int = 0
    steps: int = 100
    batch: int = 64
    epochs: int = 4
    response: int = 32
    rate: float = 3e-4
    kl_coef: float = 0.05
    threads: int = 1


class ReachedError(Exception):
    """The goal was reached: ends a library's own loop."""


@dataclass
class Curve:
    """What a run has got to after each step: [seconds since it began, mean reward of the step's responses, KL]."""

    goal: float
    points: list[list[float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def add(self, reward: float, kl: float) -> None:
        """One step more. Raises ReachedError."""
        self.points.append([time.perf_counter() - self.began, reward, kl])
        if when_reached(self.points, self.goal) is not None:
            raise ReachedError


def running(points: list[list[float]], window: int = WINDOW) -> list[tuple[float, float]]:
    """(seconds, mean reward of the last `window` steps), from the first step that has so many."""
    return [
        (points[i - 1][0], sum(p[1] for p in points[i - window : i]) / window)
        for i in range(window, len(points) + 1)
    ]


def when_reached(points: list[list[float]], target: float, window: int = WINDOW) -> tuple[int, float] | None:
    """(steps, seconds) until the mean reward of the last `window` steps is at least `target`; None: never."""
    for i, (seconds, mean) in enumerate(running(points, window)):
        if mean >= target:
            return i + window, seconds
    return None


def make_folder(model: Path, data: Any, folder: Path, seed: int) -> None:
    """policy/, value/ (its trunk and a score head of zeros: V = 0) and prompts.json, [token ids, text] each.

    The padding token of policy/ is outside the model's vocabulary: TRL takes every token like it for padding.
    """
    import json

    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from proxlm.data.prompts import load_prompts

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = load_prompts(data, tokenizer, 256, "train", seed).prompts
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(value.score.weight)
    for name, network in (("policy", policy), ("value", value)):
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [[list(prompt.input_ids), prompt.text] for prompt in prompts]
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")
