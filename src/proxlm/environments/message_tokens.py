"""From an environment's messages to tokens, without touching the tokens that are there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxlm.data.chat import ChatFormat, encode_rendered, with_system
from proxlm.data.messages import Message
from proxlm.data.seams import check_seams
from proxlm.data.tokenizer import decode, encode_continuation, encode_prompt
from proxlm.data.turn_end import TurnEnd, after_reply, first_special, turn_end_of


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

    def opening(self, messages: Sequence[Message]) -> Opening:
        """The conversation before the policy's first turn."""

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

    def opening(self, messages: Sequence[Message]) -> Opening:
        """The contents as a prompt."""
        text = _joined(messages)
        check_seams(self.tokenizer, [text])
        return Opening(encode_prompt(self.tokenizer, text), text)

    def continuation(self, messages: Sequence[Message], turn: Sequence[int], end: TurnEnd) -> list[int]:  # noqa: ARG002
        """The contents."""
        text = _joined(messages)
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

    def opening(self, messages: Sequence[Message]) -> Opening:
        """The messages after the system message, and the template's beginning of a turn."""
        whole = with_system(messages, self.system)
        text = self.chat.render(whole, "reset", add_generation_prompt=True)
        check_seams(self.chat.tokenizer, [text])
        return Opening(encode_rendered(self.chat.tokenizer, text), text, whole)

    def continuation(self, messages: Sequence[Message], turn: Sequence[int], end: TurnEnd) -> list[int]:
        """The template's end of a turn, the messages, and its beginning of the next turn.

        The end of the turn stands once: where the policy has written it, or another token that ends its turns, the
        template's is left out.
        """
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

    def _written(self, reply: str, tail: str) -> int:
        """How many characters of the template's end of a turn, which is plain text, the reply ends with already."""
        end = os.path.commonprefix([after_reply(self.chat, ()), tail])  # noqa: RUF071 (not paths)
        return next((n for n in range(len(end), 0, -1) if reply.endswith(end[:n])), 0)


def _joined(messages: Sequence[Message]) -> str:
    return "".join(message["content"] or "" for message in messages)
