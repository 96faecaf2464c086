"""Environments side by side, whose whole state is how their episodes began and the actions since.

Episode k of environment i is reset with a seed that is a pure function of (run seed, i, k). An environment that
keeps Gymnasium's contract (reset(seed=...) fixes its randomness) is then determined by k and the actions of the
running episode: a resume replays them and reaches the same state, bit for bit, without knowing what is inside.

Episodes are reset here, not by a vector environment: the critic needs the last observation of an episode after a
truncation, and Gymnasium's autoreset modes hide it in an info or spend a step on the reset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxlm.control.spaces import Spaces
from proxlm.errors import RunError
from proxlm.seeds import Purpose, derive_seed

Floats = NDArray[np.float32]
MakeEnvironment = Callable[[], Any]
"""Makes one Gymnasium environment."""


class Step(NamedTuple):
    """The results of one step of N environments.

    Attributes:
        observations: After the step, [N, D]; of an episode that ended, its last.
        rewards: [N].
        terminated: Whether the episode ended by itself, [N].
        truncated: Whether a time limit ended it, [N].
    """

    observations: Floats
    rewards: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


@dataclass
class Episode:
    """A running episode: its number in its environment, the actions as they were sent, the sum of its rewards."""

    number: int
    actions: list[Any] = field(default_factory=list)
    total: float = 0.0


class Environments:
    """N environments, with their episodes.

    Attributes:
        observations: The present observation of each, [N, D].
        finished: (undiscounted return, length in steps) of the episodes that have ended, in order.
    """

    def __init__(self, make: MakeEnvironment, count: int, spaces: Spaces, seed: int) -> None:
        self.environments = [make() for _ in range(count)]
        self.spaces, self.seed = spaces, seed
        self.episodes = [Episode(0) for _ in self.environments]
        self.observations: Floats = np.zeros((count, spaces.observation), np.float32)
        self.finished: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.environments)

    def start(self) -> None:
        """Begin each environment's first episode."""
        for i in range(len(self)):
            self._begin(i, 0)

    def _begin(self, i: int, number: int) -> None:
        # Some environments take seeds of 31 bits only.
        seed = derive_seed(self.seed, Purpose.EPISODE, i, number) >> 32
        observation, _ = self.environments[i].reset(seed=seed)
        self.observations[i] = self.spaces.flat_observation(observation)
        self.episodes[i] = Episode(number)

    def step(self, actions: NDArray[Any]) -> Step:
        """Act in all environments, and begin the next episode of those whose episode ended. actions [N] or [N, A]."""
        count = len(self)
        rewards = np.empty(count, np.float32)
        terminated, truncated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        for i, action in enumerate(self.spaces.to_environment(actions)):
            rewards[i], terminated[i], truncated[i] = self._act(i, action)
        after = self.observations.copy()
        for i in np.flatnonzero(terminated | truncated).tolist():
            episode = self.episodes[i]
            self.finished.append((episode.total, len(episode.actions)))
            self._begin(i, episode.number + 1)
        return Step(after, rewards, terminated, truncated)

    def _act(self, i: int, action: Any) -> tuple[float, bool, bool]:
        observation, reward, terminated, truncated, _ = self.environments[i].step(action)
        episode = self.episodes[i]
        episode.actions.append(action)
        episode.total += float(reward)
        self.observations[i] = self.spaces.flat_observation(observation)
        return reward, terminated, truncated

    def state_tensors(self) -> dict[str, Tensor]:
        """number [N], observations [N, D], and the actions of each running episode, actions.I [length, ...]."""
        numbers = torch.tensor([episode.number for episode in self.episodes])
        actions = {
            f"actions.{i}": torch.from_numpy(self.spaces.to_array(episode.actions))
            for i, episode in enumerate(self.episodes)
        }
        return {"number": numbers, "observations": torch.from_numpy(self.observations.copy()), **actions}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`: replay each running episode from its beginning.

        Raises:
            RunError: An environment does not show the same observation again.
        """
        for i, number in enumerate(tensors["number"].tolist()):
            self._begin(i, number)
            for action in self.spaces.from_array(tensors[f"actions.{i}"].numpy()):
                self._act(i, action)
        if not np.array_equal(self.observations, tensors["observations"].numpy(), equal_nan=True):
            raise RunError(
                "the environment is not the same after the same seed and actions, so the run cannot continue exactly:"
                " is all its randomness drawn from self.np_random?"
            )

    def close(self) -> None:
        """Free what the environments hold."""
        for environment in self.environments:
            environment.close()
