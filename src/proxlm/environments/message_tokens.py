"""From what an environment says to tokens, without touching the tokens that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxlm.data.chat import Message, encode_rendered, render, with_system
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import DataError

# A reply that no template changes, to find out what the template puts around one.
_PROBE = "PROBE"


class Words(Protocol):
    """Tokens of messages. Every token is appended; none is ever made anew from text."""

    def begin(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        """Token ids and text of the conversation before the policy's first reply."""

    def go_on(self, messages: Sequence[Message], eos: int | None) -> list[int]:
        """Token ids of what comes between a reply and the next one. eos: the token that ended the reply, if any."""


@dataclass(frozen=True)
class PlainWords:
    """Messages one after another, roles left out: for models that continue text."""

    tokenizer: Any

    def begin(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        text = _joined(messages)
        return encode_prompt(self.tokenizer, text), text

    def go_on(self, messages: Sequence[Message], eos: int | None) -> list[int]:  # noqa: ARG002
        return encode_rendered(self.tokenizer, _joined(messages))


@dataclass(frozen=True)
class ChatWords:
    """Messages through the chat template.

    What the template puts behind a reply and before the next one is found by rendering a short conversation with
    the new messages and without them: the rest is new text, and only that is tokenised.
    """

    tokenizer: Any
    template: str | None
    system: str = ""

    def begin(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        whole = with_system(messages, self.system)
        text = render(self.tokenizer, whole, self.template, "reset", add_generation_prompt=True)
        return encode_rendered(self.tokenizer, text), text

    def go_on(self, messages: Sequence[Message], eos: int | None) -> list[int]:
        before: list[Message] = [{"role": "user", "content": "."}, {"role": "assistant", "content": _PROBE}]
        text = render(self.tokenizer, [*before, *messages], self.template, "step", add_generation_prompt=True)
        place = text.find(_PROBE)
        if place < 0 or text.count(_PROBE) != 1:
            raise DataError(
                "the chat template changes or repeats replies: a conversation cannot go on from tokens"
            )
        ids = encode_rendered(self.tokenizer, text[place + len(_PROBE) :])
        # The template spells out the end of the reply, which is there already where the policy wrote it.
        return ids[1:] if eos is not None and ids[:1] == [eos] else ids


def _joined(messages: Sequence[Message]) -> str:
    return "".join(message["content"] for message in messages)
