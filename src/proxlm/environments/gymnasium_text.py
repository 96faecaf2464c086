"""Gymnasium's environments as conversations, as `environment.use = "gymnasium:FrozenLake-v1"`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from proxlm.environments.protocol import Answer, Task
from proxlm.environments.user_function import user_function
from proxlm.errors import ConfigError
from proxlm.text import listed, reason_of

# What the actions of Gymnasium's own games on grids and with cards are called, in their order.
ACTIONS = {
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "stay", "right"),
}
# A highlighted character of a rendering in a terminal.
_HIGHLIGHTED = re.compile(r"\x1b\[[0-9;]*m(.*?)\x1b\[0m", re.DOTALL)


class GymnasiumText:
    """An environment with discrete or text actions; the reply is an action, by name or number, or the text itself.

    A reply that is no action does nothing, and is answered by the list of actions. How long an episode may be is for
    environment.max_turns to say. What is drawn at the start comes from the task's seed, what is drawn later from its
    chance.

    Args:
        id: of the environment.
        actions: names of the actions in the order of their numbers; the names that are known, else the numbers.
        describe: how an observation is written: "" its numbers, "ansi" what the environment draws for a terminal;
            or path/to/file.py:function, from the observation and the environment to a text.
        prompt: what is said before the first observation; None: the list of actions.
        illegal: what is said to a reply that is no action; None: the list of actions.
        illegal_reward: what such a reply is paid.
        options: arguments of gymnasium.make.

    Raises:
        ConfigError: the package or the environment is not installed, or it has other actions.
    """

    def __init__(
        self,
        id: str,
        actions: Sequence[str] = (),
        describe: str = "",
        prompt: str | None = None,
        illegal: str | None = None,
        illegal_reward: float = 0.0,
        **options: Any,
    ) -> None:
        gymnasium = _package(id)
        if describe == "ansi":
            options["render_mode"] = "ansi"
        try:
            defaults: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
            self.environment: Any = gymnasium.make(id, **(defaults | options))
        except TypeError:
            raise  # an argument that it does not have
        except Exception as error:  # code of many authors
            raise ConfigError(f"gymnasium:{id}: {reason_of(error)}") from error
        space, spaces = self.environment.action_space, gymnasium.spaces
        if not isinstance(space, spaces.Discrete | spaces.Text):
            raise ConfigError(f"gymnasium:{id}: its actions are {space}; discrete ones or texts are played")
        self.space: Any = space
        self.numbers = _numbered(id, space, actions) if isinstance(space, spaces.Discrete) else None
        rule = f"Reply with one of: {listed(self.names, most=20)}." if self.numbers else ""
        self.prompt = f"{rule}\n" if prompt is None and rule else prompt or ""
        self.illegal = rule or "This is no action." if illegal is None else illegal
        self.illegal_reward = illegal_reward
        self._describe: Callable[[Any, Any], str] = _told
        if describe == "ansi":
            self._describe = _drawn
        elif describe:
            self._describe = user_function("describe", describe)

    @property
    def names(self) -> list[str]:
        """Of the actions, each once."""
        return (
            list(dict(zip(self.numbers.values(), self.numbers, strict=True)).values()) if self.numbers else []
        )

    def shown(self, observation: Any) -> str:
        """An observation as a text."""
        return self._describe(observation, self.environment)

    def reset(self, task: Task) -> str:
        from gymnasium.utils.seeding import np_random

        observation, _ = self.environment.reset(seed=task.seed % 2**31)
        self.space.seed(task.chance % 2**31)
        self.environment.unwrapped.np_random = np_random(task.chance)[0]
        return self.prompt + self.shown(observation)

    def step(self, reply: str) -> Answer:
        action = self._action(reply)
        if action is None:
            return self.illegal, self.illegal_reward, False
        observation, reward, ended, cut, _ = self.environment.step(action)
        return self.shown(observation), float(reward), bool(ended or cut)

    def _action(self, reply: str) -> Any:
        """The action that a reply names, or None."""
        if self.numbers is not None:
            return self.numbers.get(reply.strip(" \t\r\n.!\"'`*()[]<>").casefold())
        text = reply.strip()
        return text if self.space.contains(text) else None

    def close(self) -> None:
        self.environment.close()


def _package(id: str) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ConfigError(f'gymnasium:{id}: needs Gymnasium: pip install "proxlm[control]"') from error
    return gymnasium


def _numbered(id: str, space: Any, names: Sequence[str]) -> dict[str, int]:
    """What a reply may be, in lower case → the action: its number, and its name, the last of both."""
    count, start = int(space.n), int(space.start)
    names = names or ACTIONS.get(id.rpartition("/")[2].rpartition("-v")[0], ())
    if names and len(names) != count:
        raise ConfigError(
            f"environment.args.actions: {len(names)} names, and gymnasium:{id} has {count} actions"
        )
    numbers = {str(start + i): start + i for i in range(count)}
    return numbers | {name.casefold(): start + i for i, name in enumerate(names)}


def _told(observation: Any, environment: Any) -> str:  # noqa: ARG001
    """An observation's numbers, rounded to four digits; of a dictionary each with its name."""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        return "; ".join(f"{name}: {_told(value, None)}" for name, value in observation.items())
    if hasattr(observation, "tolist"):
        observation = observation.tolist()
    if isinstance(observation, list | tuple):
        return " ".join(_told(value, None) for value in observation)
    return f"{observation:.4g}" if isinstance(observation, float) else str(observation)


def _drawn(observation: Any, environment: Any) -> str:  # noqa: ARG001
    """What the environment draws, what it highlights in brackets."""
    return _HIGHLIGHTED.sub(r"[\1]", str(environment.render())).strip("\n")
