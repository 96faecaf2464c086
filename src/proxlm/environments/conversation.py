"""One conversation of a multi-turn rollout while it grows. Tokens are appended and never made again from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from proxlm.data.messages import Message
from proxlm.engine.request import RequestOutput, SampleSeed
from proxlm.environments.protocol import Environment, Task
from proxlm.rl.sampling_mask import Piece, SamplingMask
from proxlm.types import Finish, Prompt


@dataclass
class Conversation:
    """A conversation: the policy's turns and what the environment says between them.

    Attributes:
        prompt: what it is about.
        task: the same, for the environment.
        environment: its own.
        seed: counters of its random numbers, at position 0.
        began: when, in seconds of the monotonic clock.
        prompt_tokens: what the environment says before the first turn.
        prompt_text: the same as text.
        tokens: of the response: the policy's turns and the environment's messages between them. Aligned with it are
            chosen (whether the policy chose the token), logprobs (0 where it did not), rewards, and the sets of a
            SamplingMask (its pieces; empty, the whole vocabulary, where the policy did not choose or keeps none).
        vocabulary: of the sampling mask; 0 without one.
        messages: of both sides, as far as they are in the tokens; None without a chat template.
        turns: finished turns of the policy.
        last_output: of the newest turn, with its cached prefix; None before the first turn and after the end.
        frozen_states: of all tokens so far, as the engine has kept them for the newest turn; None: it has not.
        ended: whether no turn follows.
        finish: how it ended.
        error: why it was lost, or "".
    """

    prompt: Prompt
    task: Task
    environment: Environment
    seed: SampleSeed
    began: float
    prompt_tokens: list[int] = field(default_factory=list)
    prompt_text: str = ""
    tokens: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    sets: list[Piece] = field(default_factory=list)
    vocabulary: int = 0
    messages: list[Message] | None = None
    turns: int = 0
    last_output: RequestOutput | None = None
    frozen_states: Tensor | None = None
    ended: bool = False
    finish: Finish = "length"
    error: str = ""

    def append_turn(self, output: RequestOutput, reply: str) -> None:
        """Append a turn of the policy; reply: its text."""
        if self.messages is not None:
            self.messages.append({"role": "assistant", "content": reply})
        sets = None
        if output.mask is not None:
            sets, self.vocabulary = output.mask.split(), output.mask.vocabulary
        self._append(output.tokens, chosen=True, logprobs=output.logprobs, sets=sets)
        self.turns, self.last_output, self.frozen_states = self.turns + 1, output, output.frozen_states

    def append_messages(self, tokens: list[int], messages: Sequence[Message]) -> None:
        """Append what the environment said, as tokens and as messages."""
        if self.messages is not None:
            self.messages += messages
        self._append(tokens, chosen=False, logprobs=[0.0] * len(tokens))

    def _append(
        self, tokens: list[int], chosen: bool, logprobs: list[float], sets: list[Piece] | None = None
    ) -> None:
        self.tokens += tokens
        self.chosen += [chosen] * len(tokens)
        self.logprobs += logprobs
        self.rewards += [0.0] * len(tokens)
        if self.vocabulary:  # known from the first turn, with which the response begins
            self.sets += SamplingMask.whole(len(tokens), self.vocabulary).split() if sets is None else sets

    def room(self, max_tokens: int, context: int | None) -> int:
        """How many more tokens the response may have.

        Args:
            max_tokens: longest response.
            context: longest sequence of the model; None: no limit.
        """
        room = max_tokens - len(self.tokens)
        if context is not None:
            room = min(room, context - len(self.prompt_tokens) - len(self.tokens))
        return room

    def end(self, finish: Finish, error: str = "") -> None:
        """No turn follows; the cached prefix is freed."""
        self.ended, self.finish, self.error, self.last_output = True, finish, error, None
