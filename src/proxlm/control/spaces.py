"""Gymnasium's spaces as flat numbers, and environments made by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxlm.config import GymSettings
from proxlm.errors import ConfigError


@dataclass(frozen=True)
class Spaces:
    """What a policy must know of an environment.

    observation: D, numbers of a flat observation; states: how many there are if observations are single integers
    (then one-hot), else 0; action: A; continuous: numbers in [low, high] [A], else one of A integers from `start`.
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

    def flat(self, observation: Any) -> NDArray[np.float32]:
        """One observation as [D] numbers."""
        if self.states:
            one_hot = np.zeros(self.states, np.float32)
            one_hot[int(observation)] = 1.0
            return one_hot
        return np.asarray(observation, np.float32).reshape(-1)

    def sent(self, actions: NDArray[Any], clip: bool = True) -> list[Any]:
        """Actions [n] or [n, A] of the policy as the environment takes them, within its bounds."""
        if not self.continuous:
            return [int(action) + self.start for action in actions.tolist()] if clip else actions.tolist()
        bounded = np.clip(actions, self.low, self.high) if clip else actions
        return list(bounded.astype(self.action_type).reshape(len(actions), *self.action_shape))

    def stored(self, sent: list[Any]) -> NDArray[Any]:
        """Actions as they were sent, as one array: [n] int64 or [n, A]."""
        if not self.continuous:
            return np.asarray(sent, np.int64)
        return np.asarray(sent, self.action_type).reshape(len(sent), self.action)


def spaces_of(env: Any, name: str) -> Spaces:
    """The spaces of an environment. Raises ConfigError, naming the space, where they are of another kind."""
    from gymnasium.spaces import Box, Discrete

    seen, done = env.observation_space, env.action_space
    if not isinstance(seen, Box | Discrete):
        raise ConfigError(
            f"environment.id = {name}: observations are {seen}; only Box and Discrete are known"
        )
    if not isinstance(done, Box | Discrete):
        raise ConfigError(f"environment.id = {name}: actions are {done}; only Box and Discrete are known")
    if isinstance(seen, Discrete) and seen.start != 0:
        raise ConfigError(f"environment.id = {name}: observations are {seen}; they must begin at 0")
    states = int(seen.n) if isinstance(seen, Discrete) else 0
    width = states or int(np.prod(seen.shape))
    if isinstance(done, Discrete):
        return Spaces(width, states, int(done.n), continuous=False, start=int(done.start))
    size = int(np.prod(done.shape))
    low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (done.low, done.high))
    return Spaces(width, states, size, True, 0, low, high, done.shape, done.dtype)


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
        reason = " ".join(str(error).split())
        raise ConfigError(f"environment.id = {config.id}: cannot be made: {reason[:300]}") from error
