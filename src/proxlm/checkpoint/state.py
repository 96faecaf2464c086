"""A run's counters and statistics, read back from the JSON of a checkpoint into their dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from proxlm.errors import RunError

S = TypeVar("S")
# JSON's integers are unbounded; what a run counts or measures is within this.
LARGEST = 1e300


def read_state(kind: type[S], checkpoint: Path, saved: Mapping[str, Any]) -> S:
    """Build the dataclass `kind` from a checkpoint's JSON, which may hold other keys besides its fields.

    A field is an int, a float, a named tuple of these, a tuple, or a list. JSON has no infinity: a float whose
    default is not finite may be null, which is its default. Every int is a count, at least 0. What else cannot be, a
    dataclass or named tuple says in a method `problem()`, if it has one: a text, empty if all is well.

    Raises:
        RunError: A field is missing, of another type, or out of range; the message names it.
    """
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        value, default = saved.get(field.name), field.default
        if (
            field.name in saved
            and value is None
            and isinstance(default, float)
            and not math.isfinite(default)
        ):
            found[field.name] = default
        else:
            found[field.name] = _read(hints[field.name], value, checkpoint, field.name)
    return _possible(kind(**found), checkpoint, "")


def read_step(checkpoint: Path, saved: Mapping[str, Any]) -> int:
    """The step of a checkpoint. Raises RunError."""
    return int(_read(int, saved.get("step"), checkpoint, "step"))


def _possible(made: S, checkpoint: Path, at: str) -> S:
    """The object, if its numbers can be. Raises RunError that says which cannot; at: the field that it is, if any."""
    problem = made.problem() if hasattr(made, "problem") else ""
    if problem:
        where = f"{at}." if at else ""
        raise RunError(f"{checkpoint / 'state.json'}: {where}{problem}; no run can have been in this state")
    return made


def _read(kind: Any, value: Any, checkpoint: Path, name: str) -> Any:
    if kind in (int, float):
        fits = type(value) is int or (kind is float and type(value) is float)
        if not fits or not -LARGEST <= value <= LARGEST:
            raise RunError(f"{checkpoint / 'state.json'}: no number at {name!r}")
        if kind is int and value < 0:
            raise RunError(f"{checkpoint / 'state.json'}: {name} = {value:.10g}, where a count is needed")
        return kind(value)
    if get_origin(kind) is list:
        parts = [get_args(kind)[0]] * len(value) if isinstance(value, list) else None
    else:  # a tuple, or a named tuple
        parts = list(get_args(kind) or get_type_hints(kind).values())
    if not isinstance(value, list) or parts is None or len(value) != len(parts):
        count = "" if parts is None else f" of {len(parts)} numbers"
        raise RunError(f"{checkpoint / 'state.json'}: no list{count} at {name!r}")
    items = [
        _read(part, item, checkpoint, f"{name}[{i}]")
        for i, (part, item) in enumerate(zip(parts, value, strict=True))
    ]
    if get_origin(kind) is list:
        return items
    return tuple(items) if get_origin(kind) is tuple else _possible(kind(*items), checkpoint, name)
