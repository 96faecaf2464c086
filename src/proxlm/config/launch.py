"""The settings of a run in several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.setting import setting


@dataclass(frozen=True)
class LaunchConfig(RecipeCommand):
    """Run a recipe in several processes of this machine that train together, with torchrun's agent."""

    command: Literal["ppo", "value", "pretrain", "sft", "reward", "dpo", "distill"] = setting(
        "ppo", "the command that the recipe is for"
    )
    workers: int = setting(2, "number of processes: one a GPU, or a few cores each", ge=1)
    max_restarts: int = setting(
        0,
        "how often all processes are started again when one of them fails; they go on from the newest checkpoint",
        ge=0,
    )

    grace: float = setting(
        120.0,
        "seconds that the processes have for their end after Ctrl-C or SIGTERM, or when one of them has failed; then"
        " they are killed",
        ge=1,
    )

    positional: ClassVar[str] = "command recipe"
