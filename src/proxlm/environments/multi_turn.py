"""Rollouts of conversations: the policy's turns in batches, the environments' answers beside them.

All conversations are in flight at once. Whoever has its answer joins those that write, between two tokens; a slow
environment holds up its own conversation only. Tokens are appended and never made anew from text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.engine.native import identities
from proxlm.engine.philox import uniforms
from proxlm.engine.scheduler import Turn, Writer, response_text
from proxlm.environments.message_tokens import Words
from proxlm.environments.pool import Calls
from proxlm.environments.protocol import Environment, MakeEnvironment, Task, checked_answer, checked_words
from proxlm.errors import RunError, UserError
from proxlm.models.language_model import LanguageModel
from proxlm.seeds import Purpose, Stream, derive_seed
from proxlm.types import Finish, Progress, Prompt, Rollout, Sequences

# Answers as quick as this are waited for, so that with quick environments no batch depends on the clock. Waits in
# vain may take this share of a rollout's time, and some seconds at its beginning.
QUICK_SECONDS, VAIN_SHARE, VAIN_SECONDS = 0.02, 0.02, 0.1


@dataclass
class Conversation:
    """One conversation while it grows; lists of the response are aligned: tokens, chosen, logprobs, rewards."""

    prompt: Prompt
    task: Task
    environment: Environment
    uniform: Tensor
    began: float
    context: list[int] = field(default_factory=list)
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    turns: int = 0
    newest: Turn | None = None
    finish: Finish | None = None
    error: str = ""


@dataclass(frozen=True)
class MultiTurn:
    """Samples conversations as `rollout.native.generate` samples responses: call it with the same arguments."""

    make: MakeEnvironment
    words: Words
    settings: EnvironmentSettings

    @torch.no_grad()
    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        config: RolloutSettings,
        *,
        seed: int,
        step: int,
        stream: Stream = Stream.TRAINING,
        version: int = 0,
        on_progress: Progress | None = None,
    ) -> Rollout:
        """One conversation for each prompt (repeat a prompt for more). max_new_tokens is the limit of one turn.

        What is sampled depends on (seed, stream, step, prompt id, which repeat of it, how many tokens the policy
        chose before) and on what the environment says. A conversation whose environment raises or does not answer
        in time is lost: it has no row, and `lost` says why. Without prompts there are no rows.
        """
        calls = Calls(self.settings.timeout)
        try:
            drive = _Drive(self, model, config, calls, self._open(prompts, config, seed, step, stream))
            drive.run(on_progress)
        finally:
            calls.close()
        return drive.collect(version)

    def _open(
        self, prompts: Sequence[Prompt], config: RolloutSettings, seed: int, step: int, stream: Stream
    ) -> list[Conversation]:
        ids, repeats = identities(prompts)
        chances = [
            derive_seed(seed, Purpose.CHANCE, stream, step, *pair)
            for pair in zip(ids.tolist(), repeats.tolist(), strict=True)
        ]
        # An environment may add words, never choices: as many numbers as the policy can use.
        most = min(self.settings.max_tokens, self.settings.max_turns * config.max_new_tokens)
        numbers = uniforms(seed, stream, step, ids, repeats, most)
        now = time.monotonic()
        return [
            Conversation(
                p, Task(p.text, p.fields, derive_seed(p.id, Purpose.TASK), chance), self.make(), u, now
            )
            for p, chance, u in zip(prompts, chances, numbers, strict=True)
        ]


class _Drive:
    """One rollout while it goes on."""

    def __init__(
        self,
        spec: MultiTurn,
        model: LanguageModel,
        config: RolloutSettings,
        calls: Calls,
        conversations: list[Conversation],
    ) -> None:
        self.spec, self.model, self.config, self.calls = spec, model, config, calls
        self.all = conversations
        self.writer = Writer(model, config)
        self.writes: dict[int, int] = {}  # id of a turn → whose it is
        self.ready: list[int] = []
        self.fresh: set[int] = set()  # whose call began since the last wait for quick answers
        self.began, self.vain = time.monotonic(), 0.0
        self.done = 0

    def run(self, on_progress: Progress | None) -> None:
        for key, conversation in enumerate(self.all):
            self._call(key, conversation.environment.reset, conversation.task)
        while self.writer or self.calls:
            self._hear(0.0 if self.writer else 1.0)
            self._hear_quick_ones()
            self.writer.add([self._turn(key) for key in sorted(self.ready)])
            self.ready = []
            if self.writer:
                for turn in self.writer.step():
                    self._reply(self.writes.pop(id(turn)), turn)
            if on_progress is not None:
                on_progress(self.done, len(self.all))

    def _call(self, key: int, function: Callable[..., Any], *arguments: Any) -> None:
        self.fresh.add(key)
        self.calls.start(key, function, *arguments)

    def _hear_quick_ones(self) -> None:
        began = time.monotonic()
        if self.vain <= VAIN_SECONDS + VAIN_SHARE * (began - self.began):
            while self.fresh and (left := began + QUICK_SECONDS - time.monotonic()) > 0:
                self._hear(left)
            if self.fresh:
                self.vain += time.monotonic() - began
        self.fresh.clear()

    def _hear(self, wait: float) -> None:
        """Take in the answers that have come."""
        for key, value, error in self.calls.ended(wait):
            self.fresh.discard(key)
            conversation = self.all[key]
            try:
                if error is not None:
                    raise error
                self._take(key, conversation, value)
            except Exception as failure:
                self._end(conversation, "length", error=f"{type(failure).__name__}: {failure}")

    def _take(self, key: int, conversation: Conversation, value: Any) -> None:
        """One answer: the beginning, or what follows a reply."""
        turn = conversation.newest
        if turn is None:
            messages = checked_words(value, "reset")
            conversation.context, conversation.text = self.spec.words.begin(messages)
            if not conversation.context:
                raise UserError("reset: the conversation begins with no tokens")
            self._next(key, conversation, [])
            return
        messages, reward, done = checked_answer(value)
        conversation.rewards[-1] += reward
        if done:
            self._end(conversation, "done")
        else:
            eos = turn.tokens[-1] if turn.finish == "eos" else None
            self._next(key, conversation, self.spec.words.go_on(messages, eos))

    def _next(self, key: int, conversation: Conversation, words: list[int]) -> None:
        """Append the environment's words and let the policy write, unless a limit is reached.

        A conversation that ends at a limit ends with the policy's own last token.
        """
        settings = self.spec.settings
        late = settings.time_limit and time.monotonic() - conversation.began > settings.time_limit
        if late or conversation.turns >= settings.max_turns or self._room(conversation) - len(words) < 1:
            if not conversation.turns:
                raise UserError(
                    f"no room for a reply behind a beginning of {len(conversation.context)} tokens"
                )
            self._end(conversation, "length")
            return
        _append(conversation, words, chosen=False, logprobs=[0.0] * len(words))
        self.ready.append(key)

    def _room(self, conversation: Conversation) -> int:
        """How many more tokens the response may have."""
        room = self.spec.settings.max_tokens - len(conversation.tokens)
        context = self.model.context
        if context is not None:
            room = min(room, context - len(conversation.context) - len(conversation.tokens))
        return room

    def _turn(self, key: int) -> Turn:
        """The conversation's next turn, to be written."""
        conversation = self.all[key]
        limit = min(self.config.max_new_tokens, self._room(conversation))
        first = sum(conversation.chosen)
        # Numbers belong to choices: words in between do not shift them.
        numbers = conversation.uniform[first : first + limit]
        memory = conversation.newest.memory if conversation.newest else None
        turn = Turn([*conversation.context, *conversation.tokens], numbers, limit, memory, goes_on=True)
        self.writes[id(turn)] = key
        return turn

    def _reply(self, key: int, turn: Turn) -> None:
        """A turn has been written: the environment hears of it."""
        conversation = self.all[key]
        _append(conversation, turn.tokens, chosen=True, logprobs=turn.logprobs)
        conversation.turns, conversation.newest = conversation.turns + 1, turn
        reply = response_text(self.model.tokenizer, turn.context, turn.tokens, self.config.stop)
        self._call(key, conversation.environment.step, reply)

    def _end(self, conversation: Conversation, finish: Finish, error: str = "") -> None:
        conversation.finish, conversation.error = finish, error
        conversation.newest = None  # and what the decoder knew of it
        self.done += 1

    def collect(self, version: int) -> Rollout:
        kept = [c for c in self.all if not c.error]
        lost = [c.error for c in self.all if c.error]
        if lost and not kept:
            raise RunError(f"every conversation was lost; the first one: {lost[0]}")
        sequences = Sequences.from_lists([c.context for c in kept], [c.tokens for c in kept])

        def flat(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([x for c in kept for x in getattr(c, name)], dtype=dtype)

        return Rollout(
            prompts=[replace(c.prompt, input_ids=tuple(c.context), text=c.text) for c in kept],
            sequences=sequences,
            action_mask=flat("chosen", torch.bool),
            logprobs=flat("logprobs", torch.float32),
            finish=[c.finish or "length" for c in kept],
            texts=[response_text(self.model.tokenizer, c.context, c.tokens) for c in kept],
            policy_version=version,
            rewards=flat("rewards", torch.float32),
            lost=lost,
        )


def _append(conversation: Conversation, tokens: list[int], chosen: bool, logprobs: list[float]) -> None:
    conversation.tokens += tokens
    conversation.chosen += [chosen] * len(tokens)
    conversation.logprobs += logprobs
    conversation.rewards += [0.0] * len(tokens)
