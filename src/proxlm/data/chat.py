"""Conversations, rendered with a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxlm.config import DataSettings, TextSettings
from proxlm.config.problems import RESERVED_VARIABLES
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


def carry_template(tokenizer: Tokenizer, path: str) -> None:
    """Give the tokenizer the template in the file `path`, if any: a model is saved with the one it was used with."""
    if path:
        tokenizer.chat_template = read_template(path)


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


@dataclass(frozen=True)
class ChatExtras:
    """What a record gives the chat template beside its messages.

    Attributes:
        tools: JSON schemas of the tools that the assistant may call, or None.
        variables: Variables of the template, of this record alone; they go before those of the settings.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(fields: Mapping[str, Any], where: str) -> ChatExtras:
        """The fields `tools` and `chat_template_kwargs` of a record. Raises BadRecordError; where: file and line."""
        variables = fields.get("chat_template_kwargs")
        if variables is not None and not isinstance(variables, Mapping):
            reason = (
                f'{where}: field "chat_template_kwargs" must be an object, not {type(variables).__name__}'
            )
            raise BadRecordError(reason, "malformed messages")
        if reserved := sorted({*(variables or {})} & RESERVED_VARIABLES):
            reason = f'{where}: field "chat_template_kwargs": "{reserved[0]}" is not a variable of a template'
            raise BadRecordError(reason, "malformed messages")
        return ChatExtras(fields.get("tools") or None, variables or {})


NO_EXTRAS = ChatExtras()


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become text: a chat template and its variables.

    Attributes:
        tokenizer: Of the model.
        template: A Jinja template; None: the tokenizer's own.
        variables: Variables of the template in every conversation (`chat_template_kwargs`).
    """

    tokenizer: Tokenizer
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(tokenizer: Tokenizer, settings: DataSettings | TextSettings) -> ChatFormat:
        """The format that the settings describe. Reads the template's file; raises DataError."""
        return ChatFormat(tokenizer, read_template(settings.chat_template), settings.chat_template_kwargs)

    def render(
        self,
        messages: Sequence[Message],
        where: str,
        *,
        add_generation_prompt: bool = False,
        extras: ChatExtras = NO_EXTRAS,
    ) -> str:
        """The conversation as the model sees it, special tokens spelled out.

        Args:
            messages: The conversation.
            where: Beginning of an error's message: the file, line and field.
            add_generation_prompt: Whether to add what comes before the assistant's answer.
            extras: What the record gives the template beside its messages.

        Raises:
            DataError: There is no template.
            BadRecordError: The template refuses the messages.
        """
        from jinja2 import TemplateError

        if self.template is None and not self.tokenizer.chat_template:
            raise DataError(
                f"{where}: the tokenizer has no chat template; set chat_template to a file with one"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(extras.tools) if extras.tools else None,
                    chat_template=self.template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                    **{**self.variables, **extras.variables},
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"{where}: the chat template refuses these messages: {reason_of(error)}"
            raise BadRecordError(reason, "refused by the chat template") from error


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a rendered conversation; no special tokens are added, because the template contains them."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
