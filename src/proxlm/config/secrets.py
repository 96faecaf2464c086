"""Secrets in settings: refused, unshown, wherever they stand; an environment variable holds them instead.

Settings are written to config.toml, to checkpoints and into reports. So an argument of a reward or an environment
may be env:NAME: that is what is written, and the function gets the value of the environment variable NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from proxlm.config.secret_names import is_certain, is_key, secret_name
from proxlm.config.tree import is_section, kinds
from proxlm.config.values import Key
from proxlm.errors import ConfigError
from proxlm.masking import hide, holds_token

PREFIX = "env:"
SECRET_PATH = "looks like a secret, and paths are written to files and shown: choose another name"
SECRET = (
    "looks like a secret, and settings are written to files: put it into an environment variable NAME and write"
    f" {PREFIX}NAME"
)
# What nobody calls a field or a table: hexadecimal, or letters of both cases and digits.
_RANDOM = re.compile(r"(?=.*\d)(?:[0-9a-f]{24,}|(?=.*[a-z])(?=.*[A-Z])[\w+/=.~-]{16,})")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


def secret_settings(config: Any) -> Iterator[Key]:
    """The keys of a job's settings that hold what looks like a secret, by its name or its shape.

    Tables and lists are looked through. A table's own key may be the secret: then it is the table that is named.
    """
    yield from _in_section(config, ())


def holds_secret(table: Mapping[str, Any]) -> bool:
    """Whether a table of any settings holds what looks like a secret."""
    return next(_below(table, (), ""), None) is not None


def _in_section(section: Any, at: Key) -> Iterator[Key]:
    for name in kinds(type(section)):
        value = getattr(section, name)
        yield from _below(value, (*at, name), "")


def _below(value: Any, at: Key, name: str) -> Iterator[Key]:
    """Secrets in a value. name: the innermost name of a table's entry that it stands under and that is a secret's."""
    if is_section(value):
        yield from _in_section(value, at)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if holds_token(key):
                yield at
            elif is_section(item):
                yield from _in_section(item, (*at, key))
            else:
                yield from _below(
                    item, (*at, key), key if secret_name(key) and not (name and is_key(key)) else name
                )
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _below(item, at, name)
    elif isinstance(value, str | int) and not isinstance(value, bool) and _is_secret(name, value):
        yield at


def _is_secret(name: str, value: str | int) -> bool:
    text = str(value)
    if isinstance(value, str):
        variable = text.removeprefix(PREFIX)
        if holds_token(variable):
            return True
        if variable != text and _VARIABLE.fullmatch(variable):
            return False
    if not name or len(text) < 4:
        return False
    if is_certain(name):
        return True
    if is_key(name):
        return isinstance(value, str) and _RANDOM.fullmatch(text) is not None
    # A token or a secret may also be a word of the text, or several.
    authorization = name.lower().endswith(("ization", "isation", "cookie"))
    return isinstance(value, str) and len(text) >= 8 and (authorization or " " not in text.strip())


def from_environment(key: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, each env:NAME in them replaced by the variable's value, also in tables and lists.

    From then on the values are masked in all that the program prints and writes.

    Args:
        key: The setting that holds the arguments, for messages.
        args: The arguments.

    Raises:
        ConfigError: A variable is not set.
    """
    return {name: _resolved(f"{key}.{name}", value) for name, value in args.items()}


def hide_environment(config: Any) -> None:
    """Mask the values of all variables that the settings name, those that are set, from now on."""
    for name in kinds(type(config)):
        value = getattr(config, name)
        if is_section(value):
            hide_environment(value)
        else:
            _hide_in(value)


def _hide_in(value: Any) -> None:
    if isinstance(value, str) and value.startswith(PREFIX):
        found = os.environ.get(value.removeprefix(PREFIX)) if "\0" not in value else None
        if found is not None:
            hide(found, value)
    elif is_section(value) and not isinstance(value, type):
        hide_environment(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            _hide_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _hide_in(item)


def _resolved(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _resolved(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(key, item) for item in value]
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return value
    variable = value.removeprefix(PREFIX)
    if variable not in os.environ:
        raise ConfigError(f'{key} = "{value}": the environment has no variable {variable!a}; set it first')
    hide(os.environ[variable], value)
    return os.environ[variable]
