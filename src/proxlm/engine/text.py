"""From token ids to the text of a response."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from proxlm.data.tokenizer import decode
from proxlm.data.turn_end import TurnEnd, special_ids

# So many tokens before a response show how it reads after them: whether it begins with a space.
_BEFORE = 8
# Special tokens by these names are never part of a response's text.
_CONTROL = ("bos", "eos", "pad", "cls", "sep")


@dataclass(frozen=True, eq=False)
class ResponseText:
    """What a response reads like: without the token or the stop text that ended it, and without control tokens.

    Attributes:
        tokenizer: Of the model.
        end: What ends a turn of the model.
        stop: Texts that end a response; they may hold special tokens.
        stop_token_ids: Tokens that end a response.
        skip_special_tokens: Leave out every special token. False: those that the model writes within its response are
            shown, but for BOS, EOS and padding.
    """

    tokenizer: Any
    end: TurnEnd
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool = False

    def __call__(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text of a whole response.

        Args:
            prompt: Token ids before the response; none for an encoder–decoder, whose response is a text by itself.
            response: Token ids.
        """
        tokens = list(response)
        if tokens and (tokens[-1] in self.end.tokens or tokens[-1] in self.stop_ids):
            tokens.pop()
        if self._spelled_stops and (found := self._cut_at_spelled_stop(prompt, tokens)) is not None:
            return found
        text = self.shown(prompt, tokens)
        position = stop_position(text, self._plain_stops)
        return text if position is None else text[:position]

    def transcript(self, prompt: Sequence[int], tokens: Sequence[int], chosen: Sequence[bool]) -> str:
        """The text of a conversation's response: the policy's turns, and what others said without special tokens.

        Args:
            prompt: Token ids before it.
            tokens: Token ids.
            chosen: Whether the policy chose the token.
        """
        said = zip(tokens, chosen, strict=True)
        return self.shown(prompt, [token for token, own in said if own or token not in self._special])

    def shown(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The tokens as they read behind those before them, without the hidden ones.

        Decoding them alone would lose a leading space in SentencePiece-type tokenizers.
        """
        return self._after(before, tokens, self.hidden)

    def stops_in(self, before: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens holds a stop text."""
        if stop_position(self.shown(before, tokens), self._plain_stops) is not None:
            return True
        spelled = self._spelled_stops
        return bool(spelled) and stop_position(self._spelled(before, tokens), spelled) is not None

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a response as a stop: those asked for by number, and stop texts that are one token."""
        return frozenset(self.stop_token_ids) | {i for i, name in self._special.items() if name in self.stop}

    @cached_property
    def hidden(self) -> frozenset[int]:
        """The tokens that are left out of texts."""
        special = frozenset(self._special)
        if self.skip_special_tokens:
            return special
        control = (getattr(self.tokenizer, f"{name}_token_id", None) for name in _CONTROL)
        return special & {*control, *self.end.tokens}

    @cached_property
    def _special(self) -> dict[int, str]:
        """The special tokens and how they are spelled."""
        ids = sorted(special_ids(self.tokenizer))
        return dict(zip(ids, self.tokenizer.convert_ids_to_tokens(ids), strict=True))

    @cached_property
    def _spelled_stops(self) -> tuple[str, ...]:
        """Stop texts with special tokens and other text in them: they are looked for where those are shown."""
        names = set(self._special.values())
        return tuple(s for s in self.stop if s not in names and any(name in s for name in names))

    @cached_property
    def _plain_stops(self) -> tuple[str, ...]:
        names = set(self._special.values())
        return tuple(s for s in self.stop if s not in names and s not in self._spelled_stops)

    def _cut_at_spelled_stop(self, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
        """The text before the earliest stop text of any kind, if one with special tokens in it is there."""
        whole = self._spelled(prompt, tokens)
        position = stop_position(whole, self._spelled_stops)
        if position is None:
            return None
        count = len(tokens)
        while count and len(self._spelled(prompt, tokens[:count])) > position:
            count -= 1
        text = self.shown(prompt, tokens[:count])
        text += whole[len(self._spelled(prompt, tokens[:count])) : position]
        earlier = stop_position(text, self._plain_stops)
        return text if earlier is None else text[:earlier]

    def _spelled(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text with the special tokens that stop texts hold."""
        held = {i for i, name in self._special.items() if any(name in stop for stop in self._spelled_stops)}
        return self._after(before, tokens, self.hidden - held)

    def _after(self, before: Sequence[int], tokens: Sequence[int], hidden: Collection[int]) -> str:
        context = [token for token in before[-_BEFORE:] if token not in hidden]
        kept = [token for token in tokens if token not in hidden]
        head, whole = decode(self.tokenizer, context), decode(self.tokenizer, [*context, *kept])
        return whole[len(head) :] if whole.startswith(head) else decode(self.tokenizer, kept)


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)
