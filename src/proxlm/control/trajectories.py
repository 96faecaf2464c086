"""Trajectories: T steps of N environments under one policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proxlm.control.distributions import Distribution, noise_for
from proxlm.control.environments import Environments
from proxlm.control.network import Agent, LSTMState, segments_for
from proxlm.control.normalise import Scale


@dataclass(frozen=True)
class Trajectories:
    """What was observed and done; [T, N, ...] unless said otherwise.

    Attributes:
        observations: Before each step, [T, N, D].
        next_observations: After each step, [T, N, D]; where an episode ended, its last observation.
        actions: As sampled, not clipped: [T, N] int64, or [T, N, A].
        logprobs: Of the policy that sampled the actions.
        rewards: As the environment gave them.
        terminated: Whether the episode ended by itself, bool.
        ended: Whether the episode ended by itself or by a time limit, bool.
        first_state: The policy's LSTM before the first step, [N, H].
        last_state: The policy's LSTM after the last step, [N, H].
    """

    observations: Tensor
    next_observations: Tensor
    actions: Tensor
    logprobs: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    first_state: LSTMState | None
    last_state: LSTMState | None


@torch.no_grad()
def collect_trajectories(
    agent: Agent,
    environments: Environments,
    scale: Scale | None,
    horizon: int,
    state: LSTMState | None,
    seed: int,
) -> Trajectories:
    """Let the policy act for some steps in each environment.

    Args:
        agent: The policy.
        environments: N environments, which continue from where they are.
        scale: Of the observations.
        horizon: Steps T of each environment.
        state: The policy's LSTM before the first step.
        seed: Of all random numbers of the sampling.
    """
    count, spaces = len(environments), environments.spaces
    noise = noise_for(spaces.continuous, (horizon, count, spaces.action), seed)
    observations, following = np.empty((2, horizon, count, spaces.observation), np.float32)
    rewards = np.empty((horizon, count), np.float32)
    terminated, truncated = np.empty((2, horizon, count), np.bool_)
    offsets, first_state = torch.arange(count + 1), state
    actions, choices = list[Tensor](), list[Distribution]()
    for t in range(horizon):
        observations[t] = environments.observations
        x = scale_observations(torch.from_numpy(observations[t]), scale)
        choice, state = agent.act(x, segments_for(offsets, state))
        actions.append(choice.sample(noise[t]))
        choices.append(choice)
        following[t], rewards[t], terminated[t], truncated[t] = environments.step(actions[-1].numpy())
        if state is not None:
            state = reset_where_ended(state, torch.from_numpy(terminated[t] | truncated[t]))
    taken = torch.stack(actions)
    return Trajectories(
        observations=torch.from_numpy(observations),
        next_observations=torch.from_numpy(following),
        actions=taken,
        logprobs=torch.stack([choice.logprob(a) for choice, a in zip(choices, actions, strict=True)]),
        rewards=torch.from_numpy(rewards),
        terminated=torch.from_numpy(terminated),
        ended=torch.from_numpy(terminated) | torch.from_numpy(truncated),
        first_state=first_state,
        last_state=state,
    )


def scale_observations(observations: Tensor, scale: Scale | None) -> Tensor:
    """Observations [..., D] as the networks get them."""
    return observations if scale is None else scale(observations)


def reset_where_ended(state: LSTMState, ended: Tensor) -> LSTMState:
    """The state with zeros where an episode ended. ended [B] bool."""
    keep = (~ended).unsqueeze(-1).float()
    return state[0] * keep, state[1] * keep
