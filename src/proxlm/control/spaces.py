"""Gymnasium's spaces as flat numbers, and environments made by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxlm.config import GymSettings
from proxlm.errors import ConfigError
from proxlm.text import reason_of


@dataclass(frozen=True)
class Spaces:
    """An environment's observations and actions as flat numbers.

    Attributes:
        observation: D, numbers of a flat observation.
        states: The number of possible observations if they are single integers (then one-hot), else 0.
        action: A, numbers of a continuous action, or how many discrete ones there are.
        continuous: Whether actions are numbers.
        start: The first discrete action.
        low: The lower bounds of a continuous action, [A].
        high: The upper bounds, [A].
        action_shape: The environment's own shape of a continuous action.
        action_type: The environment's own type of its numbers.
    """

    observation: int
    states: int
    action: int
    continuous: bool
    start: int = 0
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None
    action_shape: tuple[int, ...] = ()
    action_type: Any = np.int64

    def flat_observation(self, observation: Any) -> NDArray[np.float32]:
        """One observation as [D] numbers."""
        if self.states:
            one_hot = np.zeros(self.states, np.float32)
            one_hot[int(observation)] = 1.0
            return one_hot
        return np.asarray(observation, np.float32).reshape(-1)

    def to_environment(self, actions: NDArray[Any]) -> list[Any]:
        """The policy's actions [n] or [n, A] as the environment takes them, clipped to its bounds."""
        if not self.continuous:
            return [int(action) + self.start for action in actions.tolist()]
        return self.from_array(np.clip(actions, self.low, self.high).astype(self.action_type))

    def to_array(self, actions: list[Any]) -> NDArray[Any]:
        """Actions as the environment took them, in one array: [n] int64, or [n, A]."""
        if not self.continuous:
            return np.asarray(actions, np.int64)
        return np.asarray(actions, self.action_type).reshape(len(actions), self.action)

    def from_array(self, actions: NDArray[Any]) -> list[Any]:
        """Inverse of `to_array`."""
        return (
            list(actions.reshape(len(actions), *self.action_shape)) if self.continuous else actions.tolist()
        )


def spaces_of(environment: Any, name: str) -> Spaces:
    """The spaces of an environment. Raises ConfigError, naming the space, if it is of an unknown kind."""
    from gymnasium.spaces import Box, Discrete

    observations, actions = environment.observation_space, environment.action_space
    if not isinstance(observations, Box | Discrete):
        raise ConfigError(
            f"environment.id = {name}: observations are {observations}; only Box and Discrete are known"
        )
    if not isinstance(actions, Box | Discrete):
        raise ConfigError(f"environment.id = {name}: actions are {actions}; only Box and Discrete are known")
    if isinstance(observations, Discrete) and observations.start != 0:
        raise ConfigError(f"environment.id = {name}: observations are {observations}; they must begin at 0")
    states = int(observations.n) if isinstance(observations, Discrete) else 0
    width = states or int(np.prod(observations.shape))
    if isinstance(actions, Discrete):
        return Spaces(width, states, int(actions.n), continuous=False, start=int(actions.start))
    size = int(np.prod(actions.shape))
    low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (actions.low, actions.high))
    return Spaces(width, states, size, True, 0, low, high, actions.shape, actions.dtype)


def make_environment(config: GymSettings, render: bool = False) -> Any:
    """One environment by its name. Raises ConfigError: no Gymnasium, no such name, arguments it does not take."""
    try:
        import gymnasium
    except ImportError:
        raise ConfigError(
            "proxlm control needs the package gymnasium, which is not installed: pip install proxlm[control]"
        ) from None
    more: dict[str, Any] = {"render_mode": "rgb_array"} if render else {}
    if config.time_limit:
        more["max_episode_steps"] = config.time_limit
    try:
        return gymnasium.make(config.id, **{**config.args, **more})
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"environment.id = {config.id}: cannot be made: {reason_of(error)}") from error
