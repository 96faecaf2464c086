"""The settings of `proxlm probe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.problems import Problems
from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting


@dataclass(frozen=True)
class ProbeConfig(RecipeCommand):
    """Suggest a learning rate, a batch size and the size of a pass for a recipe, by trying; no model is kept."""

    command: Literal["sft", "pretrain"] = setting("sft", "the command that the recipe is for")
    folder: str = setting(
        "",
        "where probe.json and probe.html are written; empty: runs/probe-DATE-TIME; an old one: written again",
        path="output",
    )
    lr_low: float = setting(1e-6, "range test: learning rate of the first step", gt=0)
    lr_high: float = setting(1.0, "range test: learning rate of the last step", gt=0)
    lr_steps: int = setting(
        100, "range test: optimiser steps, each at a higher rate than the one before", ge=20
    )
    lr_repeats: int = setting(
        2, "range test: how often it is done, on other batches; their agreement says how sure it is", ge=1
    )
    noise_after: int = setting(
        30,
        "noise scale: optimiser steps at the suggested rate before it is measured, since weights at their start say"
        " little of a run; 0: at the start",
        ge=0,
    )
    noise_batches: int = setting(8, "noise scale: batches that it is estimated on", ge=2)
    noise_parts: int = setting(8, "noise scale: parts of each batch whose gradients are compared", ge=2)

    positional: ClassVar[str] = "command recipe"

    def problems(self) -> Problems:
        found = super().problems()
        if self.lr_low >= self.lr_high:
            found.append(("lr_low", f"must be less than lr_high = {self.lr_high:g}"))
        return found
