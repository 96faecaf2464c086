"""The gradient-noise scale: from which batch size on larger batches save few steps (McCandlish et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def noise_estimates(small_norm2: float, big_norm2: float, small: float, big: float) -> tuple[float, float]:
    """Unbiased estimates of |G|² and tr Σ from the squared norms of gradients on two batch sizes.

    E |G_B|² = |G|² + tr Σ / B, so with B = small and B = big (McCandlish et al. 2018, appendix A.1)
    |G|² ≈ (big |G_big|² − small |G_small|²) / (big − small) and tr Σ ≈ (|G_small|² − |G_big|²) / (1/small − 1/big).

    Args:
        small_norm2: |G_small|², of several batches their mean.
        big_norm2: |G_big|².
        small: The size of the small batches.
        big: The size of the big one.

    Returns:
        |G|², which can come out negative where the noise is large, and tr Σ.
    """
    norm2 = (big * big_norm2 - small * small_norm2) / (big - small)
    return norm2, (small_norm2 - big_norm2) / (1 / small - 1 / big)


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr Σ / |G|², in the units of the batch sizes, with a 95% interval.

    Attributes:
        scale: The estimate; infinite where no gradient was seen above the noise.
        low: The interval's lower end.
        high: Its upper end; infinite where a gradient of 0 cannot be excluded.
    """

    scale: float
    low: float
    high: float


def noise_scale(estimates: Sequence[tuple[float, float]]) -> NoiseScale:
    """The noise scale from pairs |G|², tr Σ of independent batches: the ratio of their means.

    The ratio of means is biased less than the mean of ratios. The interval is that of |G|² / tr Σ by the jackknife
    over the batches, turned over, since it is the gradient that may be lost in noise.

    Args:
        estimates: Two or more, of `noise_estimates`.
    """
    count = len(estimates)
    norms, traces = (math.fsum(pair[i] for pair in estimates) for i in (0, 1))
    inverse = norms / traces
    without = [(norms - g) / (traces - s) for g, s in estimates]
    mean = math.fsum(without) / count
    error = math.sqrt((count - 1) / count * math.fsum((one - mean) ** 2 for one in without))
    ends = inverse + 2 * error, inverse - 2 * error
    low, high = (1 / end if end > 0 else math.inf for end in ends)
    return NoiseScale(1 / inverse if inverse > 0 else math.inf, low, high)
