"""Mean and standard deviation of everything seen so far, and rewards scaled by them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RunningStatistics(NamedTuple):
    """Count, mean and sum of squared deviations of the numbers seen: three floats are the whole state."""

    n: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def problem(self) -> str:
        """Why statistics that were read back cannot be; empty: they can be."""
        below = [name for name in ("n", "squares") if getattr(self, name) < 0]
        return f"{below[0]} = {getattr(self, below[0]):g}, where at least 0 is needed" if below else ""

    @property
    def std(self) -> float:
        """Population standard deviation; 1 before there are two numbers, or where they do not vary (by more than
        the rounding of their mean)."""
        deviation = math.sqrt(self.squares / self.n) if self.n >= 2 else 0.0
        return deviation if deviation > 1e-12 * abs(self.mean) else 1.0


def with_values(statistics: RunningStatistics, values: Tensor) -> RunningStatistics:
    """The statistics with more numbers taken in. values [n], n ≥ 0"""
    if not len(values):
        return statistics
    n, mean, squares = pooled(*statistics, values)
    return RunningStatistics(n, float(mean), float(squares))


def pooled(
    n: float, mean: float | Tensor, squares: float | Tensor, rows: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Count, mean and sum of squared deviations, element by element, with more rows taken in.

    Chan et al. 1979, in float64: any split into batches gives the same.

    Args:
        n: How many rows there were.
        mean: Their mean [...], or a float for all elements.
        squares: Their sum of squared deviations [...], or a float.
        rows: More rows [m, ...], m ≥ 1.

    Returns:
        n + m, and mean and squares of all rows [...], float64.
    """
    r, more = rows.double(), float(len(rows))
    total, own = n + more, r.mean(0)
    gap = own - mean
    spread = (r - own).square().sum(0) + gap.square() * (n * more / total)
    return total, mean + gap * (more / total), squares + spread


def scale_scores(
    scores: Tensor,
    per_token: Tensor | None,
    token_sums: Tensor,
    statistics: RunningStatistics,
    limit: float,
) -> tuple[Tensor, Tensor | None]:
    """(R − mean) / std of each response's whole reward R = score + Σ per-token, clipped to ± limit.

    Zheng et al. 2023 (PPO-max) with running statistics; Ziegler et al. 2019, section 2.1, with those of the
    reference's samples. Per-token rewards are divided by std; mean and clip act on the response's score.

    Args:
        scores: [B].
        per_token: Rewards of single tokens [R], or None.
        token_sums: Σ per-token of each response [B].
        statistics: Mean and std.
        limit: The largest score, either way; 0: none.

    Returns:
        The new scores [B] and per-token rewards [R] or None.
    """
    whole = (scores + token_sums - statistics.mean) / statistics.std
    if limit > 0:
        whole = whole.clamp(-limit, limit)
    if per_token is None:
        return whole, None
    return whole - token_sums / statistics.std, per_token / statistics.std


def clip_advantages(advantages: Tensor, limit: float) -> Tensor:
    """Advantages within ± limit, so that no single token dominates the gradient; limit 0: as they are. [R] → [R]"""
    return torch.clamp(advantages, -limit, limit) if limit > 0 else advantages
