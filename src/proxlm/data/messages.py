"""Chat messages as they stand in data, in one form: role and content, or ShareGPT's from and value.

In that form a message is {"role": text, "content": text}, where the content may be None beside "tool_calls"; the
arguments of a call are an object. Other keys of a message are left as they are, for the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.errors import BadRecordError
from proxlm.text import listed, shown

Message = dict[str, Any]

KIND = "malformed messages"
_TEXT_PARTS = ("text", "input_text", "output_text")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


def read_messages(value: Any, where: str) -> list[Message]:
    """A list of messages, checked and in the form above; a message's "weight" stays in it.

    Args:
        value: What a record holds: a list of messages, or (as some versions of `datasets` store it) an object of
            lists, one for each key.
        where: Beginning of an error's message: the file, line and field.

    Raises:
        BadRecordError: It is not such a list; the message says which message and why.
    """
    if isinstance(value, Mapping):
        value = _transposed(value)
    if not isinstance(value, list | tuple) or not value:
        raise BadRecordError(f"{where}: must be a list of messages, each with role and content", KIND)
    return [_message(message, f"{where}: message {number}") for number, message in enumerate(value, 1)]


def json_value(value: Any, what: str) -> Any:
    """`value`, or what it holds as JSON: tools and arguments are often kept as a text. Raises BadRecordError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"{what}: a text that is not JSON: {shown(value, 40)}", KIND) from error


def _transposed(columns: Mapping[str, Any]) -> Any:
    """{"role": [a, b], "content": [c, d]} as a list of messages; None if it is not that."""
    lists = list(columns.values())
    if not lists or not all(isinstance(column, list) and len(column) == len(lists[0]) for column in lists):
        return None
    rows = zip(*lists, strict=True)
    return [{key: v for key, v in zip(columns, row, strict=True) if v is not None} for row in rows]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRecordError(f'{where} is not an object with "role" and "content"', KIND)
    if "role" not in value and "from" in value:
        return _sharegpt(value, where)
    message: Message = {key: inner for key, inner in value.items() if inner is not None}
    if not isinstance(message.get("role"), str):
        raise BadRecordError(f'{where} needs a text "role"', KIND)
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = _tool_calls(calls, where)
    content = message.get("content")
    if content is None:
        if not calls:
            raise BadRecordError(
                f'{where} needs a text "content" (only beside tool_calls it may be null)', KIND
            )
        message["content"] = None
    elif not isinstance(content, str):
        message["content"] = _joined_parts(content, where)
    return message


def _joined_parts(content: Any, where: str) -> str:
    """A content that is a list of parts of text, as one text."""
    if not isinstance(content, list | tuple):
        raise BadRecordError(
            f'{where} needs a text "content" or a list of text parts, not {type(content).__name__}', KIND
        )
    texts: list[str] = []
    for number, part in enumerate(content, 1):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in _TEXT_PARTS:
            raise BadRecordError(
                f'{where}: part {number} of its content is of type "{shown(str(kind), 40)}"; only parts of'
                " type text are taken",
                KIND,
            )
        if not isinstance(part.get("text"), str):
            raise BadRecordError(f'{where}: part {number} of its content needs a text "text"', KIND)
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """The calls, with each one's arguments as an object: templates write them as JSON."""
    where = f"{where}: tool_calls"
    if not isinstance(calls, list | tuple):
        raise BadRecordError(f"{where} must be a list of calls", KIND)
    made: list[dict[str, Any]] = []
    for number, call in enumerate(calls, 1):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRecordError(f'{where}: call {number} needs a "function" with a text "name"', KIND)
        what = f"{where}: the arguments of call {number}"
        arguments = json_value(function.get("arguments", {}), what)
        if not isinstance(arguments, Mapping):
            raise BadRecordError(f"{what} must be an object, or its JSON", KIND)
        called = {**function, "arguments": dict(arguments)}
        made.append({**call, "function": called} if "function" in call else called)
    return made


def _sharegpt(value: Mapping[str, Any], where: str) -> Message:
    """{"from": "gpt", "value": text} as a message."""
    speaker, text = value["from"], value.get("value")
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRecordError(
            f'{where} is from "{shown(str(speaker), 40)}"; known are {listed(_SHAREGPT_ROLES)}', KIND
        )
    rest = {key: inner for key, inner in value.items() if key not in ("from", "value") and inner is not None}
    if speaker == "function_call":
        called = json_value(text, f"{where}: its value")
        return _message(
            {**rest, "role": role, "tool_calls": called if isinstance(called, list) else [called]}, where
        )
    if not isinstance(text, str):
        raise BadRecordError(f'{where} needs a text "value"', KIND)
    return {"role": role, "content": text, **rest}


def split_weights(messages: Sequence[Message], where: str) -> tuple[list[Message], tuple[int, ...]]:
    """The messages without their "weight", and for each whether it is learnt: 1, the default, or 0.

    Raises:
        BadRecordError: A weight is neither 0 nor 1.
    """
    weights = tuple(
        checked_weight(message.get("weight", 1), f"{where}: message {number}")
        for number, message in enumerate(messages, 1)
    )
    return [{k: v for k, v in message.items() if k != "weight"} for message in messages], weights


def checked_weight(value: Any, where: str) -> int:
    """A weight: 0 (not trained on) or 1. Raises BadRecordError for any other."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        raise BadRecordError(
            f"{where}: weight must be 0 (not trained on) or 1, not {shown(str(value), 40)}; rename the field if it"
            " means something else",
            "unusable weight",
        )
    return int(value)
