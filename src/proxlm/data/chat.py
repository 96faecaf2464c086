"""Conversations, rendered with a tokenizer's chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxlm.config import DataSettings, PreferenceSettings, TextSettings
from proxlm.data.lines import read_lines
from proxlm.data.messages import Message
from proxlm.data.template import render
from proxlm.data.template_budget import TemplateLimitError
from proxlm.errors import BadRecordError, DataError
from proxlm.text import reason_of, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_REFUSED = "refused by the chat template"


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
    def of(tokenizer: Tokenizer, settings: DataSettings | TextSettings | PreferenceSettings) -> ChatFormat:
        """The format that the settings describe. Reads the template's file; raises DataError."""
        return ChatFormat(tokenizer, read_template(settings.chat_template), settings.chat_template_kwargs)

    @property
    def shows_tools(self) -> bool:
        """Whether the template has a place for tools."""
        if self.template is None and not self.tokenizer.chat_template:
            return False
        return _mentions(self.tokenizer.get_chat_template(self.template, tools=[{}]), "tools")

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
            messages: The conversation, in the form of messages.py.
            where: Beginning of an error's message: the file, line and field.
            add_generation_prompt: Whether to add what comes before the assistant's answer.
            extras: What the record gives the template beside its messages.

        Raises:
            DataError: There is no template, or it does not come to an end (see template.py).
            BadRecordError: The template refuses the messages, or would leave out tools, calls or a variable silently.
        """

        if self.template is None and not self.tokenizer.chat_template:
            raise DataError(
                f"{where}: the tokenizer has no chat template; set data.chat_template (sft, reward, dpo:"
                " text.chat_template) to a file with one, for instance recipes/data/plain-chat.jinja"
            )
        source = self.tokenizer.get_chat_template(self.template, tools=list(extras.tools or []) or None)
        _check_shown(source, messages, extras, where)
        given = _contents_for(source, messages)
        try:
            try:
                return self._rendered(source, given, add_generation_prompt, extras)
            except TypeError:
                # Some templates (DeepSeek's) join a call's arguments as a text; most write an object as JSON.
                if not any(message.get("tool_calls") for message in given):
                    raise
                given = [_with_text_arguments(message) for message in given]
                return self._rendered(source, given, add_generation_prompt, extras)
        except TemplateLimitError as error:  # the template's fault, so that every record would have it
            raise DataError(f"{where}: the chat template is refused: {error}") from error
        except Exception as error:  # a template is somebody's program and may fail in any way
            reason = f"{where}: the chat template refuses these messages: {reason_of(error)}"
            raise BadRecordError(reason, _REFUSED) from error

    def generation_spans(
        self, messages: Sequence[Message], where: str, *, extras: ChatExtras = NO_EXTRAS
    ) -> list[tuple[int, int]] | None:
        """First character and end of what the template marks with `{% generation %}` in the text of `render`.

        None: the template has no such marks. Raises BadRecordError as `render` does.
        """
        tools = list(extras.tools) if extras.tools else None
        source = self.tokenizer.get_chat_template(self.template, tools=tools)
        if not re.search(r"\{%-?\s*generation\s*-?%\}", source):
            return None
        text = self.render(messages, where, extras=extras)
        given = _contents_for(source, messages)
        marked = render(source, messages=given, tools=tools, **self._variables(extras))
        if marked.text != text:  # it joins a call's arguments as a text
            raise BadRecordError(f"{where}: the chat template's marks of generation are not found", _REFUSED)
        return marked.spans

    def _rendered(
        self, source: str, messages: Sequence[Message], add_generation_prompt: bool, extras: ChatExtras
    ) -> str:
        from transformers import PreTrainedTokenizerBase

        if type(self.tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
            # Mistral's: a program of its own instead of a template.
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
        return render(
            source,
            messages=list(messages),
            tools=list(extras.tools) if extras.tools else None,
            add_generation_prompt=add_generation_prompt,
            **self._variables(extras),
        ).text

    def _variables(self, extras: ChatExtras) -> dict[str, Any]:
        return {**self.tokenizer.special_tokens_map, **self.variables, **extras.variables}


def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _check_shown(source: str, messages: Sequence[Message], extras: ChatExtras, where: str) -> None:
    """Refuse what the template has no place for: the model would learn answers to what it has not been shown."""
    if extras.tools and not _mentions(source, "tools"):
        raise BadRecordError(f"{where}: has tools, but the chat template does not show any", _REFUSED)
    if not _mentions(source, "tool_calls") and any(message.get("tool_calls") for message in messages):
        raise BadRecordError(f"{where}: has tool_calls, but the chat template does not show any", _REFUSED)
    for name in extras.variables:
        if not _mentions(source, name):
            reason = f"chat_template_kwargs sets {shown(name, 40)}, which the chat template does not use"
            raise BadRecordError(f"{where}: {reason}", _REFUSED)


def _contents_for(source: str, messages: Sequence[Message]) -> list[Message]:
    """The messages, with "" for no content unless the template asks for none: it could write the word "None"."""
    if _mentions(source, "none") or _mentions(source, "None"):
        return list(messages)
    return [{**m, "content": ""} if m["content"] is None else m for m in messages]


def _with_text_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        text = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        calls.append({**call, "function": text} if "function" in call else text)
    return {**message, "tool_calls": calls}


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a rendered conversation; no special tokens are added, because the template contains them."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
