"""The settings that a recipe of another command has, for the commands that work on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxlm.config.arguments import as_options
from proxlm.config.parse import JOB, load_config
from proxlm.config.recipe_command import RecipeCommand
from proxlm.config.toml_text import read_toml
from proxlm.config.values import shown_value
from proxlm.errors import ConfigError


def settings_of_recipe(config: RecipeCommand) -> Any:
    """The settings of the command that a recipe is for, with those of `set` over them.

    Raises:
        ConfigError: They are wrong, or the recipe does not say for which command it is.
    """
    job = config.command or _job_of(Path(config.recipe))
    if not job:
        raise ConfigError(
            f'{config.recipe}: names no command that it is for; add job = "ppo", or give --command'
        )
    return load_config(job, config.recipe, arguments=as_options(config.set))


def _job_of(file: Path) -> str:
    """The command that a recipe's line `job` names; "": it has none."""
    job = read_toml(file).get(JOB, "")
    if not isinstance(job, str):
        raise ConfigError(f"{file}: {JOB}: expected text, got {shown_value(job)}")
    return job
