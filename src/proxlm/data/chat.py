"""Conversations, rendered with a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxlm.data.lines import read_lines
from proxlm.errors import BadRecordError, DataError
from proxlm.text import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Message = dict[str, Any]


def read_template(path: str) -> str | None:
    """The Jinja template in the file `path`, or None if `path` is empty."""
    if not path:
        return None
    text = "\n".join(read_lines(Path(path)))
    if not text.strip():
        raise DataError(f"{path}: the chat template is empty")
    return text


def check_messages(value: Any, where: str) -> list[Message]:
    """`value`, checked to be a list of {"role": text, "content": text}; else raises BadRecordError.

    Args:
        value: What a record holds.
        where: Beginning of the error's message: the file, line and field.
    """
    kind = "malformed messages"
    if not isinstance(value, list) or not value:
        raise BadRecordError(f"{where}: must be a list of messages, each with role and content", kind)
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise BadRecordError(
                f'{where}: message {number} is not an object with "role" and "content"', kind
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadRecordError(f'{where}: message {number} needs a text "{key}"', kind)
    return value


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with `system` as the first one, unless it is empty or they already begin with a system message."""
    if not system or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    template: str | None,
    where: str,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as the model sees it, special tokens spelled out.

    Args:
        tokenizer: Its chat template is used unless `template` is given.
        messages: The conversation.
        template: A Jinja template, or None.
        where: Beginning of an error's message: the file, line and field.
        add_generation_prompt: Whether to add what comes before the assistant's answer.

    Raises:
        DataError: There is no template.
        BadRecordError: The template refuses the messages.
    """
    from jinja2 import TemplateError

    if template is None and not tokenizer.chat_template:
        raise DataError(f"{where}: the tokenizer has no chat template; set chat_template to a file with one")
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        reason = f"{where}: the chat template refuses these messages: {reason_of(error)}"
        raise BadRecordError(reason, "refused by the chat template") from error


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a rendered conversation; no special tokens are added, because the template contains them."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
