"""Means and shares with their 95% confidence intervals; pure functions of lists."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_Z_975 = 1.959963984540054  # the 97.5% point of the normal distribution
_LOPSIDED = 0.25


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% confidence interval (low and high equal the mean where none can be given)."""

    mean: float
    low: float
    high: float

    @staticmethod
    def exactly(value: float) -> Estimate:
        """A number without an interval."""
        return Estimate(value, value, value)

    def __str__(self) -> str:
        """mean ± half of the interval; both ends where the mean is far from its middle, or ± would leave 0 or 1."""
        half, off = (self.high - self.low) / 2, abs((self.high + self.low) / 2 - self.mean)
        if not half:
            return f"{self.mean:.3f}"
        beyond = self.mean - half < 0 <= self.low or self.mean + half > 1 >= self.high
        if off > _LOPSIDED * half or beyond:
            return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f} ± {half:.3f}"


def mean_with_interval(values: Sequence[float]) -> Estimate:
    """Mean ± t · s / √n, with Student's t at 95% and the sample standard deviation s.

    Raises ValueError for no values. One value has no interval.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to average")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, mean, mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student_t_975(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half)


def mean_of_rewards(values: Sequence[float]) -> Estimate:
    """The mean of rewards or shares with an interval that does not leave their range.

    Of zeros and ones it is Wilson's, so that none of 96 is not certainly none. Otherwise it is Student's, cut at the
    lowest and the highest value seen, which the bounds of a reward cannot be inside of.

    Raises ValueError for no values.
    """
    if values and set(values) <= {0.0, 1.0}:
        return wilson_interval(math.fsum(values), len(values))
    found = mean_with_interval(values)
    return Estimate(found.mean, max(found.low, min(values)), min(found.high, max(values)))


def wilson_interval(good: float, count: int) -> Estimate:
    """A share with its 95% interval (Wilson 1927), which stays within [0, 1]. Raises ValueError for no trials."""
    if count < 1:
        raise ValueError("no trials")
    share, z2 = good / count, _Z_975**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_975 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def correlation(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Pearson's correlation with its 95% interval by Fisher's z (1921), which stays within [−1, 1].

    Returns:
        None for fewer than 4 pairs, or where one of both is constant.
    """
    return _correlation(first, second, lambda _value: 1.0)


def _correlation(
    first: Sequence[float], second: Sequence[float], variance: Callable[[float], float]
) -> Estimate | None:
    """variance: of Fisher's z, times n − 3."""
    n = len(first)
    if n < 4 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    value = max(-1.0, min(1.0, statistics.correlation(first, second)))
    if abs(value) == 1.0:
        return Estimate(value, value, value)
    z, half = math.atanh(value), _Z_975 * math.sqrt(variance(value) / (n - 3))
    return Estimate(value, math.tanh(z - half), math.tanh(z + half))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Spearman's correlation: Pearson's of the ranks, where ties have their mean rank.

    Its interval is that of Bonett and Wright (2000), by Fisher's z with the variance (1 + ρ² / 2) / (n − 3).
    None as of `correlation`.
    """
    return _correlation(_ranks(first), _ranks(second), lambda value: 1 + value**2 / 2)


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [(places[value][0] + places[value][-1]) / 2 for value in values]


def student_t_975(degrees: int) -> float:
    """The 97.5% point of Student's t, by Hill's asymptotic expansion (1970); exact for 1 and 2 degrees.

    Within 0.1% of the tables from 3 degrees on.
    """
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return math.sqrt(2 / (0.05 * 1.95)) * 0.95
    z, n = _Z_975, degrees
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / n + g2 / n**2 + g3 / n**3 + g4 / n**4
