"""From an environment's messages to tokens, without touching the tokens that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxlm.data.chat import ChatFormat, encode_rendered, with_system
from proxlm.data.messages import Message
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import DataError

# A reply that no template changes, to find out what the template puts around one.
_PROBE = "PROBE"


class MessageTokens(Protocol):
    """Tokens of messages. Tokens are only ever appended; none is made again from text."""

    def opening(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        """Token ids and text of the conversation before the policy's first turn."""

    def continuation(self, messages: Sequence[Message], eos: int | None) -> list[int]:
        """Token ids between a turn of the policy and its next one.

        Args:
            messages: what the environment said.
            eos: the token that ended the turn before, if it ended with one.
        """


@dataclass(frozen=True)
class PlainMessageTokens:
    """Messages one after another, without their roles: for models that continue text."""

    tokenizer: Any

    def opening(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        """The contents as a prompt."""
        text = _joined(messages)
        return encode_prompt(self.tokenizer, text), text

    def continuation(self, messages: Sequence[Message], eos: int | None) -> list[int]:  # noqa: ARG002
        """The contents."""
        return encode_rendered(self.tokenizer, _joined(messages))


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

    def opening(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        """The messages after the system message, and the template's beginning of a turn."""
        whole = with_system(messages, self.system)
        text = self.chat.render(whole, "reset", add_generation_prompt=True)
        return encode_rendered(self.chat.tokenizer, text), text

    def continuation(self, messages: Sequence[Message], eos: int | None) -> list[int]:
        """The template's end of a turn, the messages, and its beginning of the next turn."""
        before: list[Message] = [{"role": "user", "content": "."}, {"role": "assistant", "content": _PROBE}]
        text = self.chat.render([*before, *messages], "step", add_generation_prompt=True)
        place = text.find(_PROBE)
        if place < 0 or text.count(_PROBE) != 1:
            raise DataError(
                "the chat template changes or repeats replies: a conversation cannot go on from tokens"
            )
        ids = encode_rendered(self.chat.tokenizer, text[place + len(_PROBE) :])
        # The template spells out the end of the turn, which is there already where the policy sampled it.
        return ids[1:] if eos is not None and ids[:1] == [eos] else ids


def _joined(messages: Sequence[Message]) -> str:
    return "".join(message["content"] or "" for message in messages)
