"""Observations and rewards scaled by running statistics, which are part of a checkpoint."""

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


def empty_statistics(width: int) -> VectorStatistics:
    """The statistics before the first row."""
    return VectorStatistics(
        0.0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    )


def with_rows(statistics: VectorStatistics, rows: Tensor) -> VectorStatistics:
    """The statistics with more rows [n, D], n ≥ 0, added."""
    return VectorStatistics(*pooled(*statistics, rows)) if len(rows) else statistics


class Scale(NamedTuple):
    """x → clip((x − shift) · factor, ± limit), the scaling of observations; shift, factor [D] float32."""

    shift: Tensor
    factor: Tensor
    limit: float

    def __call__(self, observations: Tensor) -> Tensor:
        """Observations [..., D] → [..., D]."""
        return ((observations - self.shift) * self.factor).clamp(-self.limit, self.limit)


def scale_of(statistics: VectorStatistics, limit: float, eps: float = 1e-8) -> Scale | None:
    """Scaling to mean 0 and variance 1; None, which changes nothing, before there are two rows."""
    if statistics.n < 2:
        return None
    factor = (statistics.squares / statistics.n + eps).rsqrt()
    return Scale(statistics.mean.float(), factor.float(), limit)


def scale_for(config: GymSettings, statistics: VectorStatistics) -> Scale | None:
    """The scaling of observations by the settings; None if they ask for none."""
    return scale_of(statistics, config.clip) if config.normalise_observations else None


class ReturnStatistics(NamedTuple):
    """Statistics of the discounted sums of rewards, by whose deviation rewards are divided.

    The sum G ← γ G + r starts at 0 in each episode (Engstrom et al. 2020, "reward scaling").

    Attributes:
        returns: Statistics of G after each step.
        discounted: G of each environment's running episode, [N] float64.
    """

    returns: RunningStatistics
    discounted: Tensor


def with_rewards(
    statistics: ReturnStatistics, rewards: Tensor, ended: Tensor, gamma: float
) -> ReturnStatistics:
    """The statistics with more rewards [T, N] added; ended [T, N] bool: the episode's last step."""
    discounted, sums = statistics.discounted, []
    for reward, end in zip(rewards.double().unbind(0), ended.unbind(0), strict=True):
        total = gamma * discounted + reward
        sums.append(total)
        discounted = torch.where(end, 0.0, total)
    return ReturnStatistics(with_values(statistics.returns, torch.cat(sums)), discounted)


def scaled_rewards(statistics: ReturnStatistics, rewards: Tensor, limit: float) -> Tensor:
    """Rewards over the standard deviation of the returns, clipped to ± limit.

    Their mean is not subtracted: that would change what is optimal in tasks whose episodes may end early.
    """
    return (rewards / statistics.returns.std).clamp(-limit, limit)
