"""The settings of checking a recipe before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proxlm.config.problems import Problems, required
from proxlm.config.setting import setting


@dataclass(frozen=True)
class CheckConfig:
    """Check a recipe, everything but the training: data, template, seam, reward, model, memory and time."""

    recipe: str = setting("", "the recipe (also: proxlm check RECIPE)", path="input")
    command: str = setting("", 'the command that it is for; empty: what its line job = "…" says')
    set: list[str] = setting(
        factory=list, help="a setting of the job over the recipe's, section.key=VALUE; may be repeated"
    )
    steps: int = setting(
        2,
        "steps to run on throw-away weights, the last of which is measured; 0: none, so no memory and no time",
        ge=0,
        le=10,
    )
    samples: int = setting(2, "number of samples to show, token by token", ge=0, le=20)

    positional: ClassVar[str] = "recipe"

    def problems(self) -> Problems:
        return required(("recipe", self.recipe))
