"""What ends a turn of a model: the one notion that rollouts, training targets and conversations share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from proxlm.data.chat import ChatFormat, encode_rendered
from proxlm.data.messages import Message
from proxlm.data.tokenizer import decode
from proxlm.errors import BadRecordError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# A reply that no template changes, to find out what the template puts around one.
PROBE = "PROBE"
_SYSTEM: Message = {"role": "system", "content": "."}
_ASKED: Message = {"role": "user", "content": "."}
_REPLIED: Message = {"role": "assistant", "content": PROBE}


@dataclass(frozen=True)
class TurnEnd:
    """The tokens that end a turn of a model.

    Attributes:
        eos: The tokenizer's EOS and those of the model's generation config.
        own: The special token with which the chat template ends a turn of the assistant; None: it has no template, or
            one that ends turns with plain text or not at all, so that a turn ends with EOS.
        default: The token that a training target ends with: `own`, or the tokenizer's EOS.
        begins_next: `own` is the first token of the next message rather than the last one of the reply.
    """

    eos: frozenset[int]
    own: int | None
    default: int
    begins_next: bool = False

    @cached_property
    def tokens(self) -> frozenset[int]:
        """All of them."""
        return self.eos if self.own is None else self.eos | {self.own}


def eos_of(configuration: Any) -> list[int]:
    """The EOS tokens of a generation config, or of a model's configuration; none if it is None."""
    ids = getattr(configuration, "eos_token_id", None)
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def turn_end_of(chat: ChatFormat | Tokenizer, eos: Collection[int] = ()) -> TurnEnd:
    """What ends a turn, by the tokenizer, its chat template, and the EOS tokens of the model's generation config.

    Args:
        chat: The tokenizer, with its own template or another one.
        eos: EOS tokens of the model's generation config.
    """
    chat = chat if isinstance(chat, ChatFormat) else ChatFormat(chat)
    template = chat.template or chat.tokenizer.chat_template
    known = _known.setdefault(chat.tokenizer, {})
    default = chat.tokenizer.eos_token_id
    key = (str(template), default, frozenset(eos))
    if key not in known:
        ends = frozenset({*eos, default} - {None})
        own, begins_next = _own_end(chat, ends) if template else (None, False)
        known[key] = TurnEnd(ends, own, default if own is None else own, begins_next)
    return known[key]


# A template is rendered once for each tokenizer.
_known: WeakKeyDictionary[Tokenizer, dict[tuple[str, int | None, frozenset[int]], TurnEnd]] = (
    WeakKeyDictionary()
)


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that are left out of a text without special tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset({*tokenizer.all_special_ids, *(token for token, made in added if made.special)})


def after_reply(chat: ChatFormat, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """What the template writes behind a reply that `messages` follow.

    Raises:
        DataError: The template changes or repeats replies.
        BadRecordError: It refuses the messages.
    """
    try:
        text = chat.render([_ASKED, _REPLIED, *messages], "step", add_generation_prompt=add_generation_prompt)
    except BadRecordError:  # some templates want a system message
        asked = [_SYSTEM, _ASKED, _REPLIED, *messages]
        text = chat.render(asked, "step", add_generation_prompt=add_generation_prompt)
    if text.count(PROBE) != 1:
        raise DataError(
            "the chat template changes or repeats replies: a conversation cannot go on from tokens"
        )
    return text.partition(PROBE)[2]


def first_special(tokenizer: Tokenizer, ids: Sequence[int]) -> int | None:
    """The place of the first special token, if nothing but white space is before it."""
    # Whoever adds tokens for a chat format may forget to call them special.
    added = {i for i, made in tokenizer.added_tokens_decoder.items() if made.content.strip()}
    special = special_ids(tokenizer) | added
    first = next((place for place, token in enumerate(ids) if token in special), None)
    return None if first is None or decode(tokenizer, ids[:first]).strip() else first


def _own_end(chat: ChatFormat, eos: frozenset[int]) -> tuple[int | None, bool]:
    """The first special token behind a reply, and whether it belongs to the next message.

    It may do so where the last reply of a conversation has none, if the model generates it (`<|user|>` of GLM, which
    its generation config lists).
    """
    begins = chat.tokenizer.bos_token_id
    for messages in ((), (_ASKED,)):
        try:
            tail = encode_rendered(chat.tokenizer, after_reply(chat, messages))
        except DataError:  # a template for other conversations than this one
            continue
        first = first_special(chat.tokenizer, tail)
        if first is not None and (tail[first] in eos or (not messages and tail[first] != begins)):
            return tail[first], bool(messages)
    return None, False
