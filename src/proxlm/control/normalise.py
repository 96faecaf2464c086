"""Observations and rewards brought to a common scale by running moments, which are part of a checkpoint."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.config import GymSettings
from proxlm.rl.running_statistics import RunningStatistics, pooled, with_values


class VectorStatistics(NamedTuple):
    """Count, mean [D] and sum of squared deviations [D] of the rows seen, in float64."""

    n: float
    mean: Tensor
    squares: Tensor


def no_rows(width: int) -> VectorStatistics:
    """The moments before the first row."""
    return VectorStatistics(
        0.0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    )


def with_rows(moments: VectorStatistics, rows: Tensor) -> VectorStatistics:
    """The moments with more rows [n, D], n ≥ 0, taken in."""
    return VectorStatistics(*pooled(*moments, rows)) if len(rows) else moments


class Scale(NamedTuple):
    """x → clip((x − shift) · factor, ± limit), all that a rollout needs of the moments; shift, factor [D] float32."""

    shift: Tensor
    factor: Tensor
    limit: float

    def __call__(self, observations: Tensor) -> Tensor:
        """Observations [..., D] → [..., D]."""
        return ((observations - self.shift) * self.factor).clamp(-self.limit, self.limit)


def scale_of(moments: VectorStatistics, limit: float, eps: float = 1e-8) -> Scale | None:
    """To mean 0 and variance 1; None, which leaves everything as it is, before there are two rows."""
    if moments.n < 2:
        return None
    factor = (moments.squares / moments.n + eps).rsqrt()
    return Scale(moments.mean.float(), factor.float(), limit)


def scale_for(config: GymSettings, moments: VectorStatistics) -> Scale | None:
    """The scale that the settings ask for, if they do."""
    return scale_of(moments, config.clip) if config.normalise_observations else None


class ReturnStatistics(NamedTuple):
    """What rewards are divided by: moments of the discounted sums of rewards, and each environment's sum so far [N].

    The sum G ← γ G + r begins anew with an episode (Engstrom et al. 2020, "reward scaling").
    """

    moments: RunningStatistics
    running: Tensor


def with_rewards(state: ReturnStatistics, rewards: Tensor, ended: Tensor, gamma: float) -> ReturnStatistics:
    """Take in a rollout's rewards [T, N]; ended [T, N] bool: the episode's last step."""
    running, sums = state.running, []
    for reward, end in zip(rewards.double().unbind(0), ended.unbind(0), strict=True):
        total = gamma * running + reward
        sums.append(total)
        running = torch.where(end, 0.0, total)
    return ReturnStatistics(with_values(state.moments, torch.cat(sums)), running)


def scaled_rewards(state: ReturnStatistics, rewards: Tensor, limit: float) -> Tensor:
    """Rewards over the standard deviation of the returns, within ± limit; their mean is not taken off, which would
    change what is learnt where episodes end early."""
    return (rewards / state.moments.std).clamp(-limit, limit)
