"""Rollouts of conversations: the policy's turns in batches, the environments' answers beside them.

All conversations run at once. Whenever an environment has answered, its conversation's next turn joins the batch
between two tokens; a slow environment holds up its own conversation only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from proxlm.config import EnvironmentSettings, RolloutSettings
from proxlm.data.fields import own_copy
from proxlm.data.messages import Message
from proxlm.engine.generate import mask_of, repeat_numbers, with_states
from proxlm.engine.protocol import Engine
from proxlm.engine.request import Request, RequestOutput, SampleSeed, SamplingParams
from proxlm.environments.conversation import Conversation
from proxlm.environments.message_tokens import MessageTokens
from proxlm.environments.pace import Pace, Waits
from proxlm.environments.pool import EnvironmentPool
from proxlm.environments.protocol import MakeEnvironment, Task, checked_answer, checked_messages, extras_of
from proxlm.errors import RunError, UserError
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.seeds import Purpose, Stream, derive_seed
from proxlm.types import Finish, Progress, Prompt, Rollout, Sequences


@dataclass(frozen=True)
class MultiTurn:
    """Samples conversations as `engine.generate.generate` samples responses: it is called with the same arguments.

    Attributes:
        make: makes an environment for each conversation.
        message_tokens: from the environments' messages to tokens.
        settings: limits of a conversation.
        pace: of the environments, which the rollouts so far have found.
    """

    make: MakeEnvironment
    message_tokens: MessageTokens
    settings: EnvironmentSettings
    pace: Pace = field(default_factory=Pace, init=False)

    def __post_init__(self) -> None:
        self.pace.lockstep = self.settings.lockstep

    @torch.no_grad()
    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        settings: RolloutSettings,
        *,
        seed: int,
        step: int,
        stream: Stream = Stream.TRAINING,
        on_progress: Progress | None = None,
    ) -> Rollout:
        """One conversation for each prompt (repeat a prompt for more).

        What is sampled depends on (seed, stream, step, prompt id, which repeat of it, how many tokens the policy
        chose before) and on what the environment says. A conversation whose environment raises or does not answer
        in time is lost: it has no row, and `lost` says why.

        Args:
            engine: generates the turns; it must have no other requests, and is reset at the end.
            prompts: what the conversations are about.
            settings: how turns are sampled; max_new_tokens is the limit of one turn.
            seed: of the run.
            step: of the run.
            stream: what the samples are for.
            on_progress: called after each token with the number of finished conversations and of all.

        Returns:
            CPU tensors, rows in the order of the prompts; without prompts, a rollout without rows.

        Raises:
            RunError: every conversation was lost.
        """
        pool = EnvironmentPool(self.settings.timeout)
        conversations = self._open(prompts, seed, step, stream)
        rollout = _MultiTurnRollout(self, engine, settings, pool, conversations)
        try:
            rollout.run(on_progress)
        finally:
            pool.close()
            engine.reset()
        return rollout.collect()

    def _open(self, prompts: Sequence[Prompt], seed: int, step: int, stream: Stream) -> list[Conversation]:
        began = time.monotonic()
        return [
            Conversation(
                prompt,
                Task(
                    prompt.text,
                    own_copy(prompt.fields),
                    seed=derive_seed(prompt.id, Purpose.TASK),
                    chance=derive_seed(seed, Purpose.CHANCE, stream, step, prompt.id, repeat),
                ),
                self.make(),
                SampleSeed(seed, stream, step, prompt.id, repeat),
                began,
            )
            for prompt, repeat in zip(prompts, repeat_numbers(prompts), strict=True)
        ]


class _MultiTurnRollout:
    """One rollout while it runs. Conversations are numbered; requests and calls carry that number."""

    def __init__(
        self,
        spec: MultiTurn,
        engine: Engine,
        settings: RolloutSettings,
        pool: EnvironmentPool,
        conversations: list[Conversation],
    ) -> None:
        self.limits, self.message_tokens = spec.settings, spec.message_tokens
        self.engine, self.settings, self.pool = engine, settings, pool
        self.conversations = conversations
        params = SamplingParams.of(settings, SampleSeed())
        self.text = params.response_text(engine.tokenizer, engine.turn_end)
        self.ready: list[int] = []  # whose next turn can be submitted
        self.recent: set[int] = set()  # whose call began since the last wait for answers
        self.waits = Waits(spec.pace)
        self.done = 0

    def run(self, on_progress: Progress | None) -> None:
        for number, conversation in enumerate(self.conversations):
            self._call(number, conversation.environment.reset, conversation.task)
        while len(self.engine) or len(self.pool):
            self._take_answers(0.0 if len(self.engine) else 1.0)
            self._wait_for_answers()
            if self.ready:
                self.engine.submit([self._request(number) for number in sorted(self.ready)])
                self.ready = []
            for output in self.engine.step():
                self._finish_turn(output)
            if on_progress is not None:
                on_progress(self.done, len(self.conversations))
        self.waits.finish()

    def _call(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call of an environment."""
        self.recent.add(number)
        self.pool.start(number, function, *arguments)

    def _wait_for_answers(self) -> None:
        """Let the conversations whose turn has just ended go on together, as far as the pace allows."""
        self.waits.begin()
        while self.recent and (left := self.waits.left()) > 0:
            self._take_answers(left)
        self.waits.end(missing=bool(self.recent))
        self.recent.clear()

    def _take_answers(self, wait: float) -> None:
        """Process the answers that have arrived; waits up to `wait` seconds for the first one."""
        for number, value, error in self.pool.finished(wait):
            self.recent.discard(number)
            conversation = self.conversations[number]
            if conversation.ended:  # it was closed
                continue
            if conversation.turns:
                self.waits.answered(self.pool.seconds[number])
            try:
                if error is not None:
                    raise error
                self._take_answer(number, conversation, value)
            except (Exception, SystemExit) as failure:  # as in a reward, sys.exit() does not end the run
                self._end(number, "length", error=f"{type(failure).__name__}: {failure}")

    def _take_answer(self, number: int, conversation: Conversation, value: Any) -> None:
        """One answer: of `reset` before the first turn, of `step` after each turn."""
        output = conversation.last_output
        if output is None:
            messages = checked_messages(value, "reset")
            opening = self.message_tokens.opening(messages, extras_of(conversation.environment).tools)
            conversation.prompt_tokens, conversation.prompt_text = opening.tokens, opening.text
            conversation.messages = opening.messages
            if not conversation.prompt_tokens:
                raise UserError("reset: the conversation begins with no tokens")
            self._continue(number, conversation, [], [])
            return
        messages, reward, done = checked_answer(value)
        conversation.rewards[-1] += reward
        if done:
            unfinished = extras_of(conversation.environment).unfinished
            self._end(number, "length" if unfinished else "done")
        else:
            tokens = self.message_tokens.continuation(messages, output.tokens, self.engine.turn_end)
            self._continue(number, conversation, tokens, messages)

    def _continue(
        self, number: int, conversation: Conversation, tokens: list[int], messages: list[Message]
    ) -> None:
        """Append the environment's messages and let the policy have a turn, unless a limit is reached.

        A conversation that ends at a limit ends with the policy's own last token.
        """
        late = self.limits.time_limit and time.monotonic() - conversation.began > self.limits.time_limit
        full = self._room(conversation) - len(tokens) < 1
        if late or full or conversation.turns >= self.limits.max_turns:
            if not conversation.turns:
                raise UserError(
                    f"no room for a reply behind a beginning of {len(conversation.prompt_tokens)} tokens"
                )
            self._end(number, "length")
            return
        conversation.append_messages(tokens, messages)
        self.ready.append(number)

    def _end(self, number: int, finish: Finish, error: str = "") -> None:
        """No turn follows; an environment that has a method `close` may free what it holds."""
        environment = self.conversations[number].environment
        self.conversations[number].end(finish, error)
        self.done += 1
        if callable(close := getattr(environment, "close", None)):
            self.pool.start(number, close)

    def _room(self, conversation: Conversation) -> int:
        return conversation.room(self.limits.max_tokens, self.engine.context)

    def _request(self, number: int) -> Request:
        """The conversation's next turn."""
        conversation = self.conversations[number]
        last = conversation.last_output
        # Random numbers belong to the tokens the policy chooses: messages between them do not shift them.
        seed = replace(conversation.seed, position=sum(conversation.chosen))
        limit = min(self.settings.max_new_tokens, self._room(conversation))
        return Request(
            id=number,
            prompt=[*conversation.prompt_tokens, *conversation.tokens],
            params=SamplingParams.of(self.settings, seed, limit),
            prefix=last.prefix if last is not None else None,
            keep_prefix=True,
            keep_states=seed.stream == Stream.TRAINING,
        )

    def _finish_turn(self, output: RequestOutput) -> None:
        """A turn is finished: its text goes to the environment."""
        conversation = self.conversations[output.id]
        if SamplingParams.of(self.settings, conversation.seed).keeps_mask:
            mask_of(output)
        before = [*conversation.prompt_tokens, *conversation.tokens]
        reply = self.text(before, output.tokens)
        conversation.append_turn(output, reply)
        extras_of(conversation.environment).cut = output.finish == "length"
        self._call(output.id, conversation.environment.step, reply)

    def _mask(self, kept: list[Conversation]) -> SamplingMask | None:
        """The sets that the tokens of these conversations were sampled from; None: the whole vocabulary."""
        size = max((c.vocabulary for c in kept), default=0)
        return SamplingMask.from_pieces(size, [piece for c in kept for piece in c.sets]) if size else None

    def collect(self) -> Rollout:
        kept = [c for c in self.conversations if not c.error]
        lost = [c.error for c in self.conversations if c.error]
        if lost and not kept:
            raise RunError(f"every conversation was lost; the first one: {lost[0]}")
        sequences = Sequences.from_lists([c.prompt_tokens for c in kept], [c.tokens for c in kept])

        def flat(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([x for c in kept for x in getattr(c, name)], dtype=dtype)

        return Rollout(
            prompts=[replace(c.prompt, input_ids=tuple(c.prompt_tokens), text=c.prompt_text) for c in kept],
            sequences=with_states(sequences, [c.frozen_states for c in kept]),
            action_mask=flat("chosen", torch.bool),
            logprobs=flat("logprobs", torch.float32),
            finish=[c.finish for c in kept],
            texts=[self.text.transcript(c.prompt_tokens, c.tokens, c.chosen) for c in kept],
            policy_versions=torch.full((len(sequences.response_index),), self.engine.version),
            rewards=flat("rewards", torch.float32),
            lost=lost,
            conversations=[c.messages or [] for c in kept],
            answers=[extras_of(c.environment).answer for c in kept],
            counts=[extras_of(c.environment).counts for c in kept],
            sampling_mask=self._mask(kept),
        )
