"""What an environment is: an object with `reset` and `step`, either of which may be a coroutine.

    class Guess:
        def reset(self, task):
            self.secret = random.Random(task.seed).randint(1, 8)
            return "I think of a number from 1 to 8."

        def step(self, reply):
            right = reply.strip() == str(self.secret)
            return ("Yes!" if right else "No."), float(right), right

One object is made for each conversation, so it may keep what it likes in itself. All that is random in it must come
from the seeds of its task, or a run cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxlm.data.messages import Message, read_messages
from proxlm.errors import DataError


@dataclass(frozen=True)
class Task:
    """What a conversation is about.

    Attributes:
        text: the prompt's; empty without data.prompts.
        fields: the prompt's.
        seed: of the task, the same in each repeat of its prompt: for what is fixed (a secret, a map).
        chance: of this conversation alone: for what happens in it (dice, an opponent's moves).
    """

    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    chance: int = 0


Messages = str | list[Message]
"""What an environment says: a text (of the user), or messages with role and content."""

Answer = tuple[Messages, float, bool]
"""What a step gives: what the environment says, the reward of the reply, and whether the conversation is over."""


@dataclass
class Extras:
    """What an environment may say beside its messages.

    Attributes:
        tools: JSON schemas of what the policy may call; read after `reset`.
        answer: the text that a reward function judges; None: the whole conversation.
        counts: how often what happened, by name; the means are metrics (`counted/NAME`).
        cut: set before each `step`: whether the reply was cut at `rollout.max_new_tokens`.
        unfinished: whether a conversation that the environment ends has reached its limit rather than its end.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    answer: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    cut: bool = False
    unfinished: bool = False


class Environment(Protocol):
    """The other side of one conversation.

    Two more members are used where an environment has them: a method `close()`, called when the conversation is
    over, and an attribute `extras`, an `Extras`.
    """

    def reset(self, task: Task) -> Messages | Awaitable[Messages]:
        """Begin; returns what is said before the policy's first reply."""

    def step(self, reply: str) -> Answer | Awaitable[Answer]:
        """Answer the policy's reply: the text of its turn, without what ended it."""


MakeEnvironment = Callable[[], Environment]


def extras_of(environment: Any) -> Extras:
    """An environment's own extras, or none."""
    extras = getattr(environment, "extras", None)
    return extras if isinstance(extras, Extras) else Extras()


def checked_messages(value: Any, where: str) -> list[Message]:
    """What an environment said, as messages; a text is a message of the user. Raises DataError."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return read_messages(value, where)


def checked_answer(value: Any) -> tuple[list[Message], float, bool]:
    """What `step` returned. Raises DataError where it is not (messages, reward, done)."""
    if not isinstance(value, tuple) or len(value) != 3:
        raise DataError(f"step must return (messages, reward, done), not {type(value).__name__}")
    messages, reward, done = value
    if isinstance(reward, bool) or not isinstance(reward, int | float) or reward != reward:
        raise DataError(f"step must return a number as reward, not {reward!r}")
    if not isinstance(done, bool):
        raise DataError(f"step must return True or False as done, not {done!r}")
    # What is said at the end is never read, so it may be nothing.
    return ([] if done and not messages else checked_messages(messages, "step")), float(reward), done
