"""The texts of a record: where they are in each format, read and changed in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxlm.data.fields import field_at
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError
from proxlm.text import listed, shown

Fields = dict[str, Any]

# The fields that hold texts in the formats of data/formats.py and data/preferences.py.
_KNOWN = (
    "text", "system", "prompt", "messages", "conversations", "instruction", "input", "history", "response",
    "completion", "output", "chosen", "rejected",
)  # fmt: skip
# In a message, and in a part of its content.
_INSIDE = ("content", "value", "text")


def names_of(record: Record, wanted: Sequence[str]) -> list[str]:
    """The fields of a record that hold its texts: those that are wanted, or those of the known formats.

    Raises:
        BadRecordError: It has none of them.
    """
    if wanted:
        found = [name for name in wanted if field_at(record.fields, name) is not None]
    elif isinstance(record.fields.get("text"), str):
        return ["text"]
    else:
        found = [name for name in _KNOWN if record.fields.get(name) is not None]
    if not found:
        looked = listed(wanted) if wanted else "text, prompt, response, messages and the like"
        raise BadRecordError(
            f"{record.where}: no field of {looked}; fields here: {listed(record.fields)}; name yours in fields",
            "field missing",
        )
    return found


def texts_of(record: Record, names: Sequence[str]) -> list[str]:
    """The texts in the fields `names`, in order. Raises BadRecordError for a field that holds none."""
    texts: list[str] = []

    def note(text: str) -> str:
        texts.append(text)
        return text

    for name in names:
        _changed(field_at(record.fields, name), note, f'{record.where}: field "{shown(name)}"')
    return texts


def with_texts(record: Record, names: Sequence[str], change: Callable[[str], str]) -> Fields:
    """A copy of the record's fields in which each text in the fields `names` is changed."""
    fields = dict(record.fields)
    for name in names:
        value = _changed(field_at(fields, name), change, f'{record.where}: field "{shown(name)}"')
        if name in fields:
            fields[name] = value
        else:
            _put(fields, name.split("."), value)
    return fields


def _changed(value: Any, change: Callable[[str], str], where: str) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_changed(item, change, where) for item in value]
    if isinstance(value, Mapping):
        inside = [name for name in _INSIDE if isinstance(value.get(name), str | list | Mapping)]
        if not inside and not ("role" in value or "from" in value or "type" in value):
            raise BadRecordError(f"{where} holds an object without content, value or text", "no text")
        return {**value, **{name: _changed(value[name], change, where) for name in inside}}
    if value is None:
        return None
    raise BadRecordError(f"{where} must hold text, not {type(value).__name__}", "no text")


def _put(holder: Any, path: Sequence[str], value: Any) -> None:
    """Set what is at a path, copying the objects and lists on the way."""
    name, *below = path
    key = int(name) if isinstance(holder, list) else name
    if not below:
        holder[key] = value
        return
    inner = holder[key]
    holder[key] = list(inner) if isinstance(inner, list | tuple) else dict(inner)
    _put(holder[key], below, value)
