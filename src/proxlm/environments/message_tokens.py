"""From an environment's messages to tokens, without touching the tokens that are there already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxlm.data.chat import NO_EXTRAS, ChatExtras, ChatFormat, encode_rendered, with_system
from proxlm.data.messages import Message
from proxlm.data.seams import check_seams
from proxlm.data.tokenizer import decode, encode_continuation, encode_prompt
from proxlm.data.turn_end import TurnEnd, after_reply, first_special, turn_end_of
from proxlm.environments.tools.calls import described
from proxlm.errors import BadRecordError

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Opening:
    """A conversation before the policy's first turn.

    Attributes:
        tokens: token ids.
        text: the same as text.
        messages: the messages that were rendered; None where messages are joined as plain text.
    """

    tokens: list[int]
    text: str
    messages: list[Message] | None = None


class MessageTokens(Protocol):
    """Tokens of messages. Tokens are only ever appended; none is made again from text."""

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> Opening:
        """The conversation before the policy's first turn.

        Args:
            messages: what the environment says.
            tools: JSON schemas of the tools that the policy may call.
        """

    def continuation(self, messages: Sequence[Message], turn: Sequence[int], end: TurnEnd) -> list[int]:
        """Token ids between a turn of the policy and its next one.

        Args:
            messages: what the environment said.
            turn: the tokens of the turn before.
            end: what ends a turn of the model.
        """


@dataclass(frozen=True)
class PlainMessageTokens:
    """Messages one after another, without their roles: for models that continue text."""

    tokenizer: Any

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> Opening:
        """The contents as a prompt, behind a description of the tools."""
        text = f"{described(tools)}\n\n{_joined(messages)}" if tools else _joined(messages)
        check_seams(self.tokenizer, [text])
        return Opening(encode_prompt(self.tokenizer, text), text)

    def continuation(self, messages: Sequence[Message], turn: Sequence[int], end: TurnEnd) -> list[int]:  # noqa: ARG002
        """The contents; those of tools in tags."""
        text = _joined(_tagged(messages))
        check_seams(self.tokenizer, [text])
        return encode_continuation(self.tokenizer, text)


@dataclass(frozen=True)
class ChatMessageTokens:
    """Messages through the chat template.

    What the template puts after a turn and before the next one is found by rendering a short conversation with the
    new messages: only what follows the policy's turn in it is tokenised.

    Attributes:
        chat: the tokenizer and its chat template.
        system: system message of every conversation, or "".
    """

    chat: ChatFormat
    system: str = ""

    def opening(self, messages: Sequence[Message], tools: Tools = ()) -> Opening:
        """The messages after the system message, and the template's beginning of a turn.

        Tools are described by the template; where it has no place for them, by the system message.
        """
        extras, whole = NO_EXTRAS, with_system(messages, self.system)
        if tools and self.chat.shows_tools:
            extras = ChatExtras(tools)
        elif tools:
            own = whole[0]["content"] if whole[0]["role"] == "system" else ""
            told = {"role": "system", "content": f"{own}\n\n{described(tools)}".strip()}
            whole = [told, *(whole[1:] if own else whole)]
        text = self.chat.render(whole, "reset", add_generation_prompt=True, extras=extras)
        check_seams(self.chat.tokenizer, [text])
        return Opening(encode_rendered(self.chat.tokenizer, text), text, whole)

    def continuation(self, messages: Sequence[Message], turn: Sequence[int], end: TurnEnd) -> list[int]:
        """The template's end of a turn, the messages, and its beginning of the next turn.

        The end of the turn stands once: where the policy has written it, or another token that ends its turns, the
        template's is left out.
        """
        if any(message["role"] == "tool" for message in messages) and not self._shows_results():
            messages = _tagged(messages)
        tokenizer, end = self.chat.tokenizer, turn_end_of(self.chat, end.eos)
        tail = after_reply(self.chat, messages, add_generation_prompt=True)
        ids = encode_continuation(tokenizer, tail)
        first = first_special(tokenizer, ids)
        if first is None:
            words = [token for token in turn if token not in end.tokens]
            return encode_continuation(tokenizer, tail[self._written(decode(tokenizer, words), tail) :])
        theirs, last = ids[first], turn[-1]
        ended = theirs == last or (last in end.tokens and theirs == end.own and not end.begins_next)
        return ids[first + 1 :] if ended else ids

    def _shows_results(self) -> bool:
        """Whether the template writes what a tool gave: some refuse such a message, or leave it out."""
        given = {"role": "tool", "name": "RESULT", "content": "RESULT"}
        try:
            return "RESULT" in after_reply(self.chat, [given], add_generation_prompt=True)
        except BadRecordError:
            return False

    def _written(self, reply: str, tail: str) -> int:
        """How many characters of the template's end of a turn, which is plain text, the reply ends with already."""
        end = os.path.commonprefix([after_reply(self.chat, ()), tail])  # noqa: RUF071 (not paths)
        return next((n for n in range(len(end), 0, -1) if reply.endswith(end[:n])), 0)


def _joined(messages: Sequence[Message]) -> str:
    return "".join(message["content"] or "" for message in messages)


def _tagged(messages: Sequence[Message]) -> list[Message]:
    """The messages, what tools gave as the user's and in tags: for models whose template knows of no tools."""
    return [
        {"role": "user", "content": f"<tool_response>{message['content']}</tool_response>\n"}
        if message["role"] == "tool"
        else message
        for message in messages
    ]
