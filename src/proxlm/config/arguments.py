"""The command line's arguments as settings: --section.key value, --section.key=value, --flag, bare ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from proxlm.config.tree import is_section, key_below_value, kinds, split_key, unknown_key
from proxlm.config.values import Key, dotted, from_text, is_table
from proxlm.errors import ConfigError

SOURCE = "command line"
# What stands for a longer key: the first of those that the job has.
SHORT = {"resume": ("run.resume",), "on-bad-record": ("data.on_bad_record", "text.on_bad_record")}

# Words taken as a flag's value, so that "--run.resume yes" is an error about yes, not about a recipe yes.
_BOOLEAN_WORDS = {"true", "false", "yes", "no", "on", "off", "1", "0"}


def read_arguments(job: Any, arguments: Sequence[str]) -> tuple[list[str], dict[Key, Any]]:
    """The bare arguments, and the settings in the order in which they take effect.

    A key given twice counts as it was given last, but a list's values are put together.
    """
    bare: list[str] = []
    settings: dict[Key, Any] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
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
        if kind == list[str]:
            value = settings.pop(key, []) + value
        settings.pop(key, None)
        settings[key] = value
    return bare, settings


def short_for(job: Any, name: str) -> str | None:
    """The key that a short name stands for in a job; None where the job has none of them."""
    return next((key for key in SHORT[name] if key.split(".")[0] in kinds(job)), None)


def _following(key: Key, kind: Any, waiting: list[str]) -> str:
    """The value after --key, taken from `waiting`."""
    if kind is bool and not (waiting and waiting[0].lower() in _BOOLEAN_WORDS):
        return "true"
    if not waiting or waiting[0].startswith("--"):
        name = dotted(key)
        raise ConfigError(
            f"{SOURCE}: {name}: no value given; write --{name} VALUE, or --{name}=VALUE if it begins with --"
        )
    return waiting.pop(0)


def _declared(job: Any, key: Key) -> tuple[Key, Any]:
    """The key as it is spelled in the tree, and its declared type.

    Only the names that users choose themselves (of terms, components, stages) keep their dashes; the keys of
    dict[str, Any] are keyword arguments, which have none.
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
