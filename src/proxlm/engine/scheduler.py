"""Texts are written many at once, token by token; one that ends leaves its place to one that waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.decoders import Decoder, make_decoder
from proxlm.engine.kv_cache import Memory, SlotDecoder
from proxlm.engine.sampling import sample
from proxlm.models.language_model import LanguageModel
from proxlm.types import Finish

# Reading new contexts costs about a step of all. So turns join when they are this share of the batch, or have
# waited for so many steps.
JOIN_SHARE, JOIN_STEPS = 1 / 8, 4


@dataclass(eq=False)
class Turn:
    """One text while the policy writes it: behind `context`, of at most `limit` tokens.

    uniform [limit or more] float64: the numbers that pick the tokens; finish "length" where it was cut.
    memory: what the decoder knows of the context already, if anything; with goes_on it is set anew at the end, and
    the next turn of a conversation need not read everything again.
    """

    context: Sequence[int]
    uniform: Tensor
    limit: int
    memory: Memory | None = None
    goes_on: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = "length"


class Writer:
    """Continuous batching. `add` turns at any time; each `step` is one token of every turn that has a place.

    There are config.batch_size places. len() counts the turns that have not ended.
    """

    def __init__(self, model: LanguageModel, config: RolloutSettings) -> None:
        self.model, self.config = model, config
        self.ends = _Ends(model, config.stop)
        made = make_decoder(model, config.weights)
        self.decoder: Decoder = made
        self.slots = made if isinstance(made, SlotDecoder) else None
        self.waiting: deque[Turn] = deque()
        self.live: list[Turn] = []
        self.numbers = self.states = torch.empty(0)
        self._patience = JOIN_STEPS

    def __len__(self) -> int:
        return len(self.live) + len(self.waiting)

    def add(self, turns: Iterable[Turn]) -> None:
        """Turns to write, in this order."""
        self.waiting.extend(turns)

    @torch.no_grad()
    def step(self) -> list[Turn]:
        """Write one token of each; returns the turns that ended with it."""
        with self.model.autocast():
            self._admit()
            places = torch.tensor([len(turn.tokens) for turn in self.live], device=self.model.device)
            uniform = self.numbers.gather(1, places[:, None])[:, 0]
            tokens, logprobs = sample(self._logits(), uniform, self.config)
            ended = []
            for i, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
                turn = self.live[i]
                turn.tokens.append(token)
                turn.logprobs.append(logprob)
                if self.ends.after(turn):
                    ended.append(i)
            gone = [self.live[i] for i in ended]
            if ended:
                tokens = tokens[self._drop(ended)]
            if self.live:
                self.states = self.decoder.step(tokens)
        return gone

    def _logits(self) -> Tensor:
        return (self.slots or self.model).logits(self.states)

    def _admit(self) -> None:
        """Let turns that wait take free places, unless it is better to wait for more of them."""
        count = min(len(self.waiting), self.config.batch_size - len(self.live))
        if count < 1:
            return
        if self.live:
            if self.slots is None:
                return
            self._patience -= 1
            if count < JOIN_SHARE * len(self.live) and self._patience > 0:
                return
        self._patience = JOIN_STEPS
        turns = [self.waiting.popleft() for _ in range(count)]
        states = self._read(turns)
        # The limit of a turn may be below that of others.
        width = self.config.max_new_tokens
        numbers = torch.stack([_filled(turn.uniform[:width], width) for turn in turns]).to(self.model.device)
        if self.live:
            states, numbers = torch.cat([self.states, states]), torch.cat([self.numbers, numbers])
        self.states, self.numbers = states, numbers
        self.live += turns

    def _read(self, turns: list[Turn]) -> Tensor:
        contexts = [turn.context for turn in turns]
        if self.slots is not None:
            room = max(turn.limit for turn in turns)
            return self.slots.add(contexts, room, [turn.memory for turn in turns])
        made = make_decoder(self.model, self.config.weights)
        assert not isinstance(made, SlotDecoder)
        self.decoder = made
        return made.start(contexts)

    def _drop(self, ended: list[int]) -> Tensor:
        """Take these rows out; the last ones move into their places. Returns which row each one was before."""
        for i in ended:
            turn = self.live[i]
            turn.memory = None
            if turn.goes_on and self.slots is not None:
                turn.memory = self.slots.remember(i)
        left = len(self.live) - len(ended)
        rows = list(range(left))
        movers = sorted(set(range(left, len(self.live))) - set(ended))
        for hole, mover in zip((i for i in ended if i < left), movers, strict=True):
            rows[hole] = mover
        kept = torch.tensor(rows, dtype=torch.int64, device=self.model.device)
        self.decoder.keep(kept)
        self.live, self.numbers = [self.live[i] for i in rows], self.numbers[kept]
        return kept


class _Ends:
    """When a text has ended."""

    def __init__(self, model: LanguageModel, stops: Sequence[str]) -> None:
        self.model, self.stops, self.eos = model, stops, model.eos_ids
        self._may_stop: dict[int, bool] = {}

    def after(self, turn: Turn) -> bool:
        """Whether the turn's newest token was its last one; notes why."""
        token = turn.tokens[-1]
        if token in self.eos:
            turn.finish = "eos"
        elif self.stops and self._can_stop(token) and self._stop_found(turn):
            turn.finish = "stop"
        else:
            return len(turn.tokens) >= turn.limit
        return True

    def _can_stop(self, token: int) -> bool:
        """Whether a stop text could end within this token: a look at the token alone, which is quick.

        A space may be lost where a token is decoded alone, and a part of a character is not shown.
        """
        known = self._may_stop.get(token)
        if known is None:
            text = self.model.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            known = "\ufffd" in text or any(stop[-1] in " " + text for stop in self.stops)
            self._may_stop[token] = known
        return known

    def _stop_found(self, turn: Turn) -> bool:
        """Looks at enough of the turn's end to hold any stop text, as it reads after what stands before it.

        A character is at most four tokens.
        """
        count = 4 * max(len(stop) for stop in self.stops) + 4
        before = [*text_before(self.model, turn)[-8:], *turn.tokens[:-count]][-8:]
        text = response_text(self.model.tokenizer, before, turn.tokens[-count:])
        return stop_position(text, self.stops) is not None


def _filled(numbers: Tensor, width: int) -> Tensor:
    return torch.cat([numbers, numbers.new_zeros(width - len(numbers))])


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, or None."""
    found = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(found, default=None)


def text_before(model: LanguageModel, turn: Turn) -> Sequence[int]:
    """What the turn goes on from: its context; an encoder–decoder's response is a text by itself."""
    return () if model.encoder_decoder else turn.context


def response_text(
    tokenizer: Any, prompt: Sequence[int], response: Sequence[int], stops: Sequence[str] = ()
) -> str:
    """The response as it reads after its prompt, without special tokens, cut before the first stop text.

    Decoding the response alone would lose a leading space in SentencePiece-type tokenizers.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **options)
    whole = tokenizer.decode([*prompt, *response], **options)
    text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(list(response), **options)
    position = stop_position(text, stops)
    return text if position is None else text[:position]
