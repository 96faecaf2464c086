"""Secrets among the arguments of rewards and environments: settings name an environment variable that holds them.

Settings are written to config.toml, to checkpoints and into reports. So an argument may be env:NAME: that is what is
written, and the function gets the value of the environment variable NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from proxlm.errors import ConfigError

PREFIX = "env:"
SECRET = (
    "looks like a secret, and settings are written to files: put it into an environment variable NAME and write"
    f" {PREFIX}NAME"
)
_NAME = re.compile(
    r"(^|_)(api_?key|access_?key|private_?key|auth|authorization|token|secret|passw(or)?d|credentials?)$",
    re.I,
)
# The prefixes of OpenAI, Hugging Face, GitHub, GitLab, Slack, AWS and Google; and tokens in three parts (JWT).
_VALUE = re.compile(
    r"(sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[\w-]{12,}|eyJ[\w-]+\.[\w-]+\.[\w-]+"
)


def secret_problems(key: str, args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A problem for each argument below `key` that looks like a secret, by its name or its value."""
    return [
        (f"{key}.{name}", SECRET)
        for name, value in args.items()
        if isinstance(value, str) and not value.startswith(PREFIX) and _is_secret(name, value)
    ]


def _is_secret(name: str, value: str) -> bool:
    plain = len(value) < 8 or " " in value.strip()
    return bool(_VALUE.search(value)) or (bool(_NAME.search(name)) and not plain)


def from_environment(key: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, env:NAME replaced by the variable's value. Raises ConfigError for a variable that is not set."""
    found = dict(args)
    for name, value in args.items():
        if isinstance(value, str) and value.startswith(PREFIX):
            variable = value.removeprefix(PREFIX)
            if variable not in os.environ:
                raise ConfigError(
                    f'{key}.{name} = "{value}": the environment has no variable {variable!a}; set it first'
                )
            found[name] = os.environ[variable]
    return found
