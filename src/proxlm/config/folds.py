"""The settings of cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting


@dataclass(frozen=True)
class FoldsConfig(RecipeCommand):
    """Cross-validate a recipe: train it once for each of k parts of its records, held out in turn."""

    command: Literal["sft", "reward", "dpo", "pretrain", "ppo"] = setting(
        "sft", "the command that the recipe is for"
    )
    k: int = setting(5, "number of parts", ge=2)
    folder: str = setting(
        "", "where the parts and the runs are written; empty: runs/folds-DATE-TIME; an old one: go on with it",
        path="output",
    )  # fmt: skip
    seed: int = setting(0, "seed of the parts", ge=0, lt=2**32)

    positional: ClassVar[str] = "command recipe"
