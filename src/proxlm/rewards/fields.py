"""A field of a completion's record."""

from __future__ import annotations

from typing import Any

from proxlm.data.fields import field_at
from proxlm.errors import RewardError
from proxlm.text import listed
from proxlm.types import Completion


def field_of(completion: Completion, name: str) -> Any:
    """The record's field `name`, or a RewardError (returned, not raised) that says which fields there are.

    The name may be a path, "data.answer".
    """
    value = field_at(completion.fields, name)
    if value is not None:
        return value
    has = listed(completion.fields, "no other fields than the prompt")
    return RewardError(f'the record has no field "{name}"; it has {has}')


def answer_of(completion: Completion, name: str) -> str | int | float | RewardError:
    """The text or the number in the record's field `name`, or a RewardError (returned, not raised)."""
    found = field_of(completion, name)
    if isinstance(found, bool) or not isinstance(found, str | int | float | RewardError):
        return RewardError(f'field "{name}" holds a {type(found).__name__}, not a text or a number')
    return found
