"""One completion of a record, and what else records with labels hold: numbers, the slice they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from proxlm.config import PreferenceSettings
from proxlm.data.fields import field_at
from proxlm.data.formats import missing_field
from proxlm.data.messages import Message, read_messages
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError
from proxlm.text import shown
from proxlm.types import Completion

_LARGEST = 3.4e38  # of float32


def read_completion(
    record: Record, text: PreferenceSettings, prompt: Any, name: str, value: Any
) -> Completion:
    """A completion as a reward would get it.

    Args:
        record: The record, for messages.
        text: The section [text].
        prompt: A text, messages, or None.
        name: The field that holds the completion.
        value: What it holds: a text; or messages, those after the prompt or, if they begin with it or there is no
            prompt, the whole conversation.

    Raises:
        BadRecordError: It is neither, or empty.
    """
    if not isinstance(value, str) or not isinstance(prompt, str | None):
        return _of_messages(record, text, prompt, name, value)
    if not (prompt or "").strip() and not value.strip():
        raise BadRecordError(f'{record.where}: field "{shown(name)}" is empty', "empty")
    if not text.chat:
        return Completion(prompt or "", value)
    return _conversation([{"role": "user", "content": prompt}] if prompt else [], value)


def _of_messages(record: Record, text: PreferenceSettings, prompt: Any, name: str, value: Any) -> Completion:
    before: list[Message] = []
    if isinstance(prompt, str):
        before = [{"role": "user", "content": prompt}]
    elif prompt is not None:
        before = _plain(read_messages(prompt, f'{record.where}: field "{text.prompt_field}"'))
    where = f'{record.where}: field "{name}"'
    after = (
        [{"role": "assistant", "content": value}]
        if isinstance(value, str)
        else _plain(read_messages(value, where))
    )
    whole = (
        after
        if after[: len(before)] == before or after[0]["role"] in ("user", "system")
        else [*before, *after]
    )
    if whole[-1]["role"] != "assistant":
        raise BadRecordError(f"{where}: the last message is not the assistant's", "malformed messages")
    return _conversation(whole[:-1], str(whole[-1].get("content") or ""), whole[-1])


def _plain(messages: Sequence[Message]) -> list[Message]:
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def _conversation(asked: Sequence[Message], answer: str, last: Message | None = None) -> Completion:
    """A completion of messages; its prompt is their contents, for models that read two texts."""
    last = {"role": "assistant", "content": answer} if last is None else last
    prompt = "\n".join(str(message.get("content") or "") for message in asked)
    return Completion(prompt, answer, messages=(*asked, last))


def group_of(completion: Completion) -> str:
    """What completions of one prompt have in common, so that none is on both sides of a split.

    A completion without a prompt is a group of its own.
    """
    if completion.messages:
        return repr(completion.messages[:-1] or completion.messages)
    return completion.prompt or completion.text


def number(record: Record, name: str, value: Any) -> float:
    """A field's value as a finite number, which a CSV file holds as text. Raises BadRecordError."""
    try:
        found = math.nan if isinstance(value, bool | Mapping | list) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or abs(found) > _LARGEST:
        raise BadRecordError(
            f'{record.where}: field "{shown(name)}" must be a number, not {shown(repr(value), 40)}',
            "no number",
        )
    return found


def slice_of(record: Record, text: PreferenceSettings) -> str:
    """The value of `text.slice_field`; empty: there is no such setting. Raises BadRecordError."""
    if not text.slice_field:
        return ""
    value = field_at(record.fields, text.slice_field)
    if value is None:
        raise missing_field(record, text.slice_field, "text.slice_field")
    return shown(str(value), 40)
