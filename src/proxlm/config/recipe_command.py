"""What the commands have in common that work on a recipe of another command: to check, plan, repeat or search it."""

from __future__ import annotations

from dataclasses import dataclass

from proxlm.config.problems import Problems, required
from proxlm.config.setting import setting


@dataclass(frozen=True)
class RecipeCommand:
    """A recipe, the command that it is for, and settings over it."""

    command: str = setting("", 'the command that the recipe is for; empty: what its line job = "…" says')
    recipe: str = setting("", "the recipe (also: the last word before the options)", path="input")
    set: list[str] = setting(
        factory=list, help="a setting of the job over the recipe's, section.key=VALUE; may be repeated"
    )

    def problems(self) -> Problems:
        return required(("recipe", self.recipe))
