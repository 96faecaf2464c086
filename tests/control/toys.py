"""Small environments whose numbers are known, and runs on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from proxlm.config import ControlConfig, ControlPPOSettings, GymSettings, NetworkSettings, RunSettings
from proxlm.control.loop import ControlLoop


class Count(gymnasium.Env):
    """Shows 10 · episode + step; two steps an episode, which end by themselves in the even ones and by a time limit
    in the odd ones. Every reward is 1."""

    observation_space, action_space = Box(-100.0, 100.0, (1,)), Discrete(2)

    def __init__(self) -> None:
        self.episode, self.done = -1, 0

    def seen(self) -> Any:
        return np.array([10 * self.episode + self.done], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.done = self.episode + 1, 0
        return self.seen(), {}

    def step(self, action):
        self.done += 1
        ends = self.done == 2
        return self.seen(), 1.0, ends and self.episode % 2 == 0, ends and self.episode % 2 == 1, {}


class Signs(gymnasium.Env):
    """Shows −1 or 1; the action of the same sign has reward 1, the other 0. Six steps, then the time is up.

    memory: the sign is that of the episode, shown at its beginning only. continuous: the action is a number.
    """

    def __init__(self, memory: bool = False, continuous: bool = False) -> None:
        self.memory, self.continuous = memory, continuous
        self.observation_space = Box(-1.0, 1.0, (1,))
        self.action_space = Box(-0.5, 0.5, (1,)) if continuous else Discrete(2)
        self.sign, self.done, self.sent = 1.0, 0, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.done, self.sign = 0, self.np_random.choice([-1.0, 1.0])
        return np.array([self.sign], np.float32), {}

    def step(self, action):
        self.sent.append(action)
        reward = float((action[0] if self.continuous else action - 0.5) * self.sign > 0)
        self.done += 1
        if not self.memory:
            self.sign = self.np_random.choice([-1.0, 1.0])
        shown = 0.0 if self.memory else self.sign
        return np.array([shown], np.float32), reward, False, self.done == 6, {}


class Walk(gymnasium.Env):
    """A random walk that the action pushes; noise in every step, and episodes that end by themselves, by time, or
    not within a rollout."""

    def __init__(self, continuous: bool) -> None:
        self.continuous, self.place = continuous, np.zeros(2)
        self.observation_space = Box(-np.inf, np.inf, (2,))
        self.action_space = Box(-1.0, 1.0, (2,)) if continuous else Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.done = self.np_random.normal(size=2), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.place = self.place + 0.1 * np.asarray(action) + 0.3 * self.np_random.normal(size=2)
        self.done += 1
        ends = bool(np.abs(self.place).max() > 2.5)
        return self.place.astype(np.float32), -float(self.place @ self.place), ends, self.done == 25, {}


def job(steps: int = 4, count: int = 3, seed: int = 0, **more: Any) -> ControlConfig:
    """Settings of a small run: `steps` PPO steps of 16 environment steps each."""
    given = {"horizon": 16, "epochs": 2, "minibatches": 2}
    model = {"width": 16} | {name: more.pop(name) for name in ("lstm", "critic", "layers") if name in more}
    env = {name: more.pop(name) for name in ("normalise_observations", "normalise_rewards") if name in more}
    ppo = ControlPPOSettings(**given | more)
    return ControlConfig(
        environment=GymSettings(id="toy", count=count, steps=steps * count * ppo.horizon, **env),
        model=NetworkSettings(**model),
        ppo=ppo,
        run=RunSettings(seed=seed, save_every=0, threads=1, tensorboard=False),
    )


def with_environment(config: ControlConfig, **env: Any) -> ControlConfig:
    return replace(config, environment=replace(config.environment, **env))


def trainer(config: ControlConfig, make: Any, folder: Path = Path()) -> ControlLoop:
    return ControlLoop(config, make, folder)
