"""The settings of checking a recipe before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting


@dataclass(frozen=True)
class CheckConfig(RecipeCommand):
    """Check a recipe, everything but the training: data, template, seam, reward, model, memory and time."""

    steps: int = setting(
        2,
        "steps to run on throw-away weights, the last of which is measured; 0: none, so no memory and no time",
        ge=0,
        le=10,
    )
    samples: int = setting(2, "number of samples to show, token by token", ge=0, le=20)

    positional: ClassVar[str] = "recipe"
