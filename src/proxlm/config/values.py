"""Single values: what a declared type accepts, how text becomes a value, and how a value is written as TOML.

The declared types are str, int, float, bool, Literal of texts, list[str], list[int], and Any (all that TOML can hold
except dates); tree.py handles tables and sections.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from proxlm.config.toml_text import parse_toml
from proxlm.text import one_line, shown

Key = tuple[str, ...]

LARGEST = 10**300

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """A key as TOML writes it, quoted only where it must be."""
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def dotted(key: Key) -> str:
    """("ppo", "lam") → ppo.lam"""
    return ".".join(toml_key(name) for name in key)


def toml_value(value: Any) -> str:
    """`value` in TOML, on one line. Raises TypeError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML has JSON's escapes, but JSON leaves DEL unescaped, which TOML forbids.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items())
        return "{" + pairs + "}"
    raise TypeError(f"no TOML for {type(value).__name__}")


def shown_value(value: Any) -> str:
    """`value` as TOML for an error message: one line, shortened; what TOML cannot hold as Python's repr."""
    try:
        return shown(toml_value(value))
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return shown(one_line(repr(value)))
    except Exception:  # a number of more digits than Python writes, or a foreign class
        return f"a value of type {type(value).__name__} that cannot be written"


def nested_beyond(value: Any, most: int) -> bool:
    """Whether lists and tables stand in one another more than `most` deep; also true for one that holds itself."""
    inside = [value]
    for _ in range(most + 1):
        below = [one.values() if isinstance(one, Mapping) else one for one in inside if _holds(one)]
        # The same object many times over counts once, so that a small value cannot be made to look large.
        inside = list({id(item): item for items in below for item in items}.values())
        if not below:
            return False
    return True


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def choices(kind: Any) -> tuple[str, ...]:
    """The texts a Literal allows; empty for every other type."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def is_table(kind: Any) -> bool:
    """Whether the declared type is dict[str, ...]."""
    return get_origin(kind) is dict


def expected(kind: Any) -> str:
    """The declared type, for an error message."""
    if choices(kind):
        return "one of " + ", ".join(f'"{choice}"' for choice in choices(kind))
    if is_dataclass(kind):
        return "a table of settings"
    if is_table(kind):
        return "a table such as {name = 1}"
    if kind == list[str]:
        return "a list of texts"
    if kind == list[int]:
        return "a list of whole numbers"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "text, a number, true, false, a list or a table")


def mismatch(kind: Any, value: Any) -> ValueError:
    """The error for a value that is not of the declared type."""
    return ValueError(f"expected {expected(kind)}, got {shown_value(value)}")


def convert(kind: Any, value: Any) -> Any:
    """`value` as a new object of the declared type, which is not a table or section.

    A whole number is accepted as a number, a tuple as a list, and a path as text. Nothing else is converted: true
    is not a number, 1.0 is not a whole number, "1" is not a number.

    Raises:
        ValueError: The message says what was expected.
    """
    if kind is Any:
        return _anything(value)
    if choices(kind):
        if value in choices(kind):
            return value
        if isinstance(value, str) and value.strip("\"'") in choices(kind):
            raise ValueError(f"expected {expected(kind)}; leave out the quotes inside")
    elif kind is str:
        return _text(value)
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int or kind is float:
        wanted = int if kind is int else (int, float)
        if isinstance(value, wanted) and not isinstance(value, bool):
            if kind is int:
                _check_size(value)
            try:
                return kind(value)
            except OverflowError:
                raise mismatch(kind, value) from None
    elif kind == list[str] and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return [_text(item) for item in value]
    elif kind == list[int] and isinstance(value, list | tuple) and all(type(v) is int for v in value):
        return list(value)
    raise mismatch(kind, value)


def _check_size(value: float) -> None:
    """Raise ValueError for a whole number that cannot be calculated with as a float, or not even be written."""
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        raise ValueError("expected a whole number of at most 300 digits")


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise mismatch(str, value)
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes on the command line that are not UTF-8 arrive as lone surrogates
        raise ValueError(f"expected UTF-8 text, got {value!a}") from None
    return value


def _anything(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {shown_value(value)}")
    if isinstance(value, bool | int | float):
        _check_size(value)
        return value
    if isinstance(value, list | tuple):
        return [_anything(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {_text(name): _anything(item) for name, item in value.items()}
    raise mismatch(Any, value)


def from_text(kind: Any, text: str) -> Any:
    """The value of the declared type that `text` on the command line stands for.

    Text that is not of the type is returned unchanged; `convert` then says what was expected.
    """
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is str or choices(kind):
        return text
    value = _toml_or_text(text)
    if kind == list[str]:
        return value if isinstance(value, list) else [text]
    if kind == list[int]:
        return value if isinstance(value, list) else [value]
    if kind is Any:
        return value if isinstance(value, str | bool | int | float | list | dict) else text
    return value if isinstance(value, dict) else text


def _toml_or_text(text: str) -> Any:
    try:
        table = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if set(table) == {"value"} else text
