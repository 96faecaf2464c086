"""Rollouts: T steps of N environments under one policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxlm.control.distributions import Distribution, noise_for
from proxlm.control.environments import Environments
from proxlm.control.network import Agent, State, rows_of
from proxlm.control.normalise import Scale


@dataclass(frozen=True)
class Rollout:
    """What was seen and done; [T, N, ...] unless said otherwise.

    observations, after [.., D]: before and after each step, `after` being an episode's last observation where it
    ended; actions [T, N] int64 or [T, N, A], as drawn, not clipped; logprobs: of the policy that drew them; rewards:
    as the environment gave them; terminated, ended bool: ended by itself, or in any way; state, last_state: the
    policy's LSTM [N, H] before the first and after the last step.
    """

    observations: Tensor
    after: Tensor
    actions: Tensor
    logprobs: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    state: State | None
    last_state: State | None


@torch.no_grad()
def collect(
    agent: Agent, envs: Environments, scale: Scale | None, horizon: int, state: State | None, seed: int
) -> Rollout:
    """Let the policy act for `horizon` steps; the random numbers come from `seed` alone."""
    count, spaces = len(envs.envs), envs.spaces
    noise = noise_for(spaces.continuous, (horizon, count, spaces.action), seed)
    seen, after = np.empty((2, horizon, count, spaces.observation), np.float32)
    rewards = np.empty((horizon, count), np.float32)
    terminated, truncated = np.empty((2, horizon, count), np.bool_)
    offsets, first = torch.arange(count + 1), state
    actions, choices = list[Tensor](), list[Distribution]()
    for t in range(horizon):
        seen[t] = envs.observations
        x = scaled(torch.from_numpy(seen[t]), scale)
        choice, state = agent.act(x, rows_of(offsets, state))
        actions.append(choice.pick(noise[t]))
        choices.append(choice)
        after[t], rewards[t], terminated[t], truncated[t] = envs.step(actions[-1].numpy())
        if state is not None:
            state = forgotten(state, torch.from_numpy(terminated[t] | truncated[t]))
    taken = torch.stack(actions)
    logprobs = torch.stack([choice.logprob(a) for choice, a in zip(choices, actions, strict=True)])
    end, cut = torch.from_numpy(terminated), torch.from_numpy(truncated)
    return Rollout(
        torch.from_numpy(seen), torch.from_numpy(after), taken, logprobs, torch.from_numpy(rewards), end,
        end | cut, first, state,
    )  # fmt: skip


def scaled(observations: Tensor, scale: Scale | None) -> Tensor:
    """Observations [..., D] as the networks see them."""
    return observations if scale is None else scale(observations)


def forgotten(state: State, ended: Tensor) -> State:
    """The state with zeros where an episode ended. ended [B] bool."""
    keep = (~ended).unsqueeze(-1).float()
    return state[0] * keep, state[1] * keep
