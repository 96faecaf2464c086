"""Command-line arguments as settings: --section.key value, --section.key=value, --flag, and bare arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, get_args

from proxlm.config.tree import first_setting, is_section, key_below_value, kinds, split_key, unknown_key
from proxlm.config.values import Key, dotted, from_text, is_table
from proxlm.errors import ConfigError
from proxlm.text import shown

SOURCE = "command line"
# Short names, each for the first of the keys that the job has.
SHORT = {"resume": ("run.resume",), "on-bad-record": ("data.on_bad_record", "text.on_bad_record")}

# Taken as a flag's value, so that "--run.resume yes" is an error about yes, not about a recipe yes.
_FLAG_VALUES = {"true", "false", "yes", "no", "on", "off", "1", "0"}


def read_arguments(job: Any, arguments: Sequence[str]) -> tuple[list[str], dict[Key, Any]]:
    """The bare arguments, and the settings in the order in which they take effect.

    Of a key that is given twice the last value counts, but the values of a list are joined.
    """
    bare: list[str] = []
    settings: dict[Key, Any] = {}
    waiting = deque(arguments)
    while waiting:
        argument = waiting.popleft()
        if not argument.startswith("-"):
            bare.append(argument)
            continue
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise ConfigError(f"{SOURCE}: {argument!a}: not an argument; write --section.key value")
        long_name = (short_for(job, name) or SHORT[name][0]) if name in SHORT else name
        key, kind = _declared(job, split_key(long_name, SOURCE))
        if not equals:
            text = _following(key, kind, waiting)
        value = from_text(kind, text)
        if kind in (list[str], list[int]) and isinstance(value, list):
            value = [*settings.pop(key, []), *value]
        settings.pop(key, None)
        settings[key] = value
    return bare, settings


def as_options(settings: Sequence[str]) -> list[str]:
    """The values of a command's --set, section.key=VALUE, as arguments of the job that it runs."""
    for one in settings:
        key, equals, _ = one.partition("=")
        if not equals or not key.strip() or key.startswith("-"):
            raise ConfigError(f'set = "{shown(one)}": write section.key=VALUE')
    return [f"--{one}" for one in settings]


def short_for(job: Any, name: str) -> str | None:
    """The key that a short name stands for in a job; None if the job has none of its keys."""
    for key in SHORT[name]:
        section, setting = key.split(".")
        kind = kinds(job).get(section)
        if is_section(kind) and setting in kinds(kind):
            return key
    return None


def _following(key: Key, kind: Any, waiting: deque[str]) -> str:
    """The value after --key, taken from `waiting`."""
    if kind is bool and not (waiting and waiting[0].lower() in _FLAG_VALUES):
        return "true"
    if not waiting or waiting[0].startswith("--"):
        name = dotted(first_setting(kind, key)[0] if is_section(kind) else key)
        raise ConfigError(
            f"{SOURCE}: {dotted(key)}: no value given; write --{name} VALUE, or --{name}=VALUE if it begins with --"
        )
    return waiting.popleft()


def _declared(job: Any, key: Key) -> tuple[Key, Any]:
    """The key as it is spelled in the tree, and its declared type.

    Dashes become underscores, except in names that users choose themselves (of terms, components, stages); the keys
    of dict[str, Any] are keyword arguments, which have no dashes.
    """
    kind: Any = job
    spelled: list[str] = []
    for i, name in enumerate(key):
        plain = name.replace("-", "_")
        if is_section(kind):
            if plain not in kinds(kind):
                raise unknown_key(job, kind, tuple(spelled), key[i:], SOURCE)
            kind = kinds(kind)[plain]
            spelled.append(plain)
        elif is_table(kind):
            kind = get_args(kind)[1]
            spelled.append(plain if kind is Any else name)
        elif kind is Any:
            spelled.append(name)
        else:
            raise key_below_value(tuple(spelled), key[i:], SOURCE)
    return tuple(spelled), kind
