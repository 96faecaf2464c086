"""Fields of a record: found by name or by a dotted path, and free of nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.errors import BadRecordError


def field_at(fields: Mapping[str, Any], name: str) -> Any:
    """The field that a setting names, or None if there is none or it is null.

    Args:
        fields: A record.
        name: A field's name or, if no field has it, a path through nested objects and lists: "data.question",
            "answers.0.text" (items of a list count from 0).
    """
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal() and part.isascii() and len(part) < 10:
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def fields_beside(fields: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """Where fields that belong to `name` are looked for: in the object that holds it, then in the record."""
    if name in fields or "." not in name:
        return (fields,)
    holder = field_at(fields, name.rpartition(".")[0])
    return (holder, fields) if isinstance(holder, Mapping) else (fields,)


def without_nulls(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a record without the fields that are null, in nested objects too; nulls in lists stay.

    Arrow has one set of fields for all objects of a column, and fills those that an object lacks with nulls. What
    was written without a field must be the same record in every format, so a null is the same as no field.

    Args:
        fields: The record.
        where: Beginning of an error's message.

    Raises:
        BadRecordError: It is nested too deeply.
    """
    try:
        return {name: _cleaned(value) for name, value in fields.items() if value is not None}
    except RecursionError as error:
        raise BadRecordError(f"{where}: the record is nested too deeply", "unreadable value") from error


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cleaned(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_cleaned(inner) for inner in value]
    if (
        str(getattr(value, "dtype", "")) == "object"
    ):  # a NumPy array of objects, as pandas gives lists of a table
        return _cleaned(value.tolist())
    return value


def own_copy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a record for a user's function, which may change it: its objects and lists are copied at every depth.

    Anything else is shared: texts and numbers cannot be changed, and tensors would cost too much.
    """
    return {name: _copied(value) for name, value in fields.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
