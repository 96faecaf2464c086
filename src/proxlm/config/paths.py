"""Settings that are paths: what a relative one is relative to, and what `~` stands for.

A relative path in a recipe is relative to the recipe's folder; on the command line and in Python, to the current
directory. What a job writes (run.folder, output, gif) is relative to the current directory wherever it is given. A
run's config.toml holds absolute paths, so that the run can be resumed from any directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from proxlm.config.gguf_paths import PACKAGE_PREFIX, is_gguf
from proxlm.config.setting import PathKind
from proxlm.config.tree import is_section, kinds
from proxlm.config.values import is_table
from proxlm.errors import ConfigError
from proxlm.user_code import parse_reference

T = TypeVar("T")
Change = Callable[[PathKind, str], str]

# Data sets of the hub are named hf:OWNER/NAME.
HUB_PREFIX = "hf:"
# Tasks of the package reasoning-gym are named reasoning-gym:TASK.
GYM_PREFIX = "reasoning-gym:"
# Environments of others are named textarena:GAME, gymnasium:ID and openenv:URL.
ENVIRONMENT_PREFIXES = ("textarena:", "gymnasium:", "openenv:")
# The argument of rewards and environments that is a path, as in the built-in reward_model. Beside it each text
# FILE.py:NAME is one, too: a function of the user's.
PATH_ARGUMENT = "path"
# Arguments that may name a file, as those of the judge and of json_schema do, or be a text or something else.
FILE_ARGUMENTS = ("rubric", "schema")


@dataclass(frozen=True)
class PathSetting:
    """A setting that is a path.

    Attributes:
        key: its dotted key; an element of a list has its number, "text.train[0]", and an argument its name.
        kind: what kind of path it is.
        value: the path.
        section: the section that it is in.
    """

    key: str
    kind: PathKind
    value: str
    section: Any


def path_settings(config: Any, at: str = "") -> Iterator[PathSetting]:
    """Every path among the settings of a job, in order; those that are empty are left out."""
    for field in fields(config):
        value = getattr(config, field.name)
        kind: PathKind | None = field.metadata.get("path")
        key = f"{at}.{field.name}" if at else field.name
        if is_section(value):
            yield from path_settings(value, key)
        elif isinstance(value, dict) and any(is_section(item) for item in value.values()):
            for name, item in value.items():
                yield from path_settings(item, f"{key}.{name}")
        elif kind:
            found: dict[str, tuple[PathKind, Any]] = {"": (kind, value)}
            if isinstance(value, list):
                found = {f"[{i}]": (kind, item) for i, item in enumerate(value)}
            elif isinstance(value, Mapping):
                named = ((name, item, _argument_kind(name, item, kind)) for name, item in _flat(value))
                found = {
                    f".{name}": (of, item)
                    for name, item, of in named
                    if of and (name not in FILE_ARGUMENTS or os.path.isfile(item))
                }
            for end, (of, path) in found.items():
                if isinstance(path, str) and path:
                    yield PathSetting(f"{key}{end}", of, path, config)


def relative_to(kind: type, table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's table for the section `kind`, with its relative paths made absolute from the recipe's `folder`.

    Entries that are not what the section declares stay as they are: reading them raises the error.
    """
    base = os.path.realpath(folder)

    def change(path: PathKind, value: str) -> str:
        return value if path == "output" else _joined(path, value, base)

    return _changed_table(kind, table, change)


def expand_user(config: T) -> T:
    """The settings with `~` and `~name` at the start of a path replaced by the home folder.

    So it means the same in a recipe, in Python and on the command line. Raises ConfigError where there is none.
    """
    return _changed(config, lambda _, value: home_expanded(value))


def home_expanded(path: str) -> str:
    """A path with `~` or `~name` at its start replaced by the home folder. Raises ConfigError where there is none."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.split("/")[0]
        raise ConfigError(
            f'"{path}": {user} is no user with a home folder; for a folder of that name write ./{user}'
        )
    return expanded


def absolute(config: T) -> T:
    """The settings with paths that are relative to the current directory made absolute.

    Args:
        config: a job's settings or a section of them.
    """
    here = os.getcwd()

    def change(kind: PathKind, value: str) -> str:
        # What does not exist cannot have been read: it is a name on the hub, or a label for texts passed in Python.
        before_colon = value.rpartition(":")[0]  # of FILE:FUNCTION and of FOLDER:SPLIT
        exists = os.path.exists(value) or os.path.exists(before_colon)
        return _joined(kind, value, here) if exists or kind == "output" else value

    return _changed(config, change)


def short(path: str) -> str:
    """A path for a table or a message: relative to the current directory where it lies below that."""
    below = os.path.join(os.getcwd(), "")
    return path.removeprefix(below) or path


def looks_like_path(name: str) -> bool:
    """Whether a model's name can only be a path: a hub name has one slash at most and begins with none of / . ~."""
    if name.startswith(PACKAGE_PREFIX):
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or is_gguf(name)


def is_named_source(name: str) -> bool:
    """Whether a source of data is no path: a data set on the hub, or tasks that are generated."""
    return name.startswith((HUB_PREFIX, GYM_PREFIX))


def _joined(kind: PathKind, value: str, base: str) -> str:
    """One path as it is from `base`, an absolute folder."""
    if not value or value.startswith("~"):
        return value
    path = os.path.normpath(os.path.join(base, value))
    if kind == "model" and not (looks_like_path(value) or os.path.isdir(path)):
        return value
    if kind == "input" and is_named_source(value):
        return value
    if kind == "function" and (value.startswith(ENVIRONMENT_PREFIXES) or parse_reference(value) is None):
        return value
    return path


def _changed(config: T, change: Change) -> T:
    """The settings with each path replaced by what `change` makes of it."""
    new: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value, path = getattr(config, field.name), field.metadata.get("path")
        if is_section(value):
            new[field.name] = _changed(value, change)
        elif isinstance(value, dict) and any(is_section(item) for item in value.values()):
            new[field.name] = {name: _changed(item, change) for name, item in value.items()}
        elif path:
            new[field.name] = _changed_value(path, value, change)
    return replace(config, **new)  # type: ignore[type-var]


def _changed_table(kind: type, table: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A table of settings from a TOML file with each path replaced by what `change` makes of it."""
    declared = kinds(kind)
    new = dict(table)
    for name, value in table.items():
        if name not in declared:
            continue
        below, path = declared[name], kind.__dataclass_fields__[name].metadata.get("path")  # type: ignore[attr-defined]
        if is_section(below) and isinstance(value, Mapping):
            new[name] = _changed_table(below, value, change)
        elif is_table(below) and is_section(get_args(below)[1]) and isinstance(value, Mapping):
            element = get_args(below)[1]
            new[name] = {
                term: _changed_table(element, item, change) if isinstance(item, Mapping) else item
                for term, item in value.items()
            }
        elif path:
            new[name] = _changed_value(path, value, change)
    return new


def _changed_value(path: PathKind, value: Any, change: Change) -> Any:
    """The value of one setting that is a path, several paths, or arguments of which one may be a path."""
    if isinstance(value, str):
        return change(path, value)
    if isinstance(value, list):
        return [change(path, item) if isinstance(item, str) else item for item in value]
    if isinstance(value, Mapping):
        return {name: _changed_argument(path, name, item, change) for name, item in value.items()}
    return value


def _changed_argument(path: PathKind, name: str, value: Any, change: Change) -> Any:
    if isinstance(value, list):
        return [_changed_argument(path, "", item, change) for item in value]
    kind = _argument_kind(name, value, path)
    if kind is None:
        return value
    changed = change(kind, value)
    return value if name in FILE_ARGUMENTS and not os.path.isfile(changed) else changed


def _argument_kind(name: str, value: Any, kind: PathKind) -> PathKind | None:
    """What kind of path an argument is, `kind` being that of the one called path; None: it is none."""
    if not isinstance(value, str):
        return None
    if name == PATH_ARGUMENT:
        return kind
    if name in FILE_ARGUMENTS:
        return "input" if _may_be_file(value) else None
    reference = parse_reference(value)
    return "function" if reference and reference.path.endswith(".py") else None


def _flat(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The arguments, those in a list one by one."""
    for name, value in arguments.items():
        if isinstance(value, list):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
        else:
            yield name, value


def _may_be_file(argument: str) -> bool:
    """Whether it can be the name of a file: not empty, and no text of several lines or with a {name} in it."""
    return bool(argument) and not any(mark in argument for mark in "\n{\0")


def adapter_base(folder: Path, name: str) -> str:
    """Where the base of a PEFT adapter is: a folder, or `name` itself where there is none.

    PEFT writes it as it was given, from the directory of that time. It is looked for there, in the adapter's folder
    and beside it.

    Args:
        folder: The adapter's.
        name: base_model_name_or_path of its adapter_config.json.
    """
    places = (Path(name), folder / name, folder.parent / name)
    return next((str(place) for place in places if os.path.isdir(place)), name)
