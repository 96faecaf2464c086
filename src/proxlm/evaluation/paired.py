"""Differences of numbers that are paired by prompt, and of arms with several seeds. Pure functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxlm.evaluation.intervals import Estimate, student_t_975
from proxlm.seeds import Purpose, derive_seed

Numbers = NDArray[np.float64]

RESAMPLES = 10_000
# Every sign is tried for so many differences that are not zero, and every assignment of so many; else some are drawn.
EXACT_SIGNS, EXACT_ASSIGNMENTS = 20, 200_000
DRAWN = 20_000
# Sums in another order differ in their last bits.
_ROUNDING = 1e-12
_AT_ONCE = 2**22


def bootstrap_difference(differences: ArrayLike, seed: int = 0) -> Estimate:
    """The mean with its 95% bootstrap interval over prompts: the quantiles of the means of resampled prompts.

    The quantiles are taken further out, at Φ(−√(n/(n − 1)) t₀.₉₇₅), as Student's t does it for few prompts: the
    expanded percentile interval (Hesterberg 2015). The interval is inside the range of the differences.

    Args:
        differences: [n], a number for each prompt.
        seed: Of the resamples; equal for all metrics, so that they have the same ones.

    Raises:
        ValueError: There are no differences.
    """
    values = _numbers(differences)
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1 or np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    generator = _generator(seed)
    means = np.concatenate(
        [values[generator.integers(0, n, (count, n))].mean(axis=1) for count in _portions(RESAMPLES, n)]
    )
    level = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_t_975(n - 1))
    low, high = np.quantile(means, [level, 1 - level])
    return Estimate(mean, float(low), float(high))


def sign_flip_p(differences: ArrayLike, seed: int = 0) -> float:
    """The two-sided p-value of Fisher's paired permutation test: how often random signs give as large a mean.

    Under the hypothesis that both systems are the same, a prompt's two numbers could as well be swapped. All 2^m
    signs of the m differences that are not zero are tried for m ≤ 20, and if all m are of one size (then the test is
    McNemar's exact one); otherwise 20,000 are drawn, and p = (1 + as large) / (1 + drawn), which is never too small
    (Phipson and Smyth 2010).

    Args:
        differences: [n], a number for each prompt.
        seed: Of the signs.

    Raises:
        ValueError: There are no differences.
    """
    values = _numbers(differences)
    values = values[values != 0]
    m, sizes = len(values), np.abs(values)
    if not m:
        return 1.0
    found = abs(math.fsum(values)) - _ROUNDING * float(sizes.sum())
    if np.ptp(sizes) == 0:
        lead = abs(int(np.sign(values).sum()))
        return min(1.0, sum(math.comb(m, k) for k in range(m + 1) if abs(2 * k - m) >= lead) / 2**m)
    if m <= EXACT_SIGNS:
        sums = np.zeros(1)
        for size in sizes[1:]:  # the first sign is fixed: the other half is the mirror image
            sums = np.concatenate([sums + size, sums - size])
        return float(np.mean(np.abs(sums + sizes[0]) >= found))
    generator = _generator(seed)
    as_large = sum(
        int((np.abs((2.0 * generator.integers(0, 2, (count, m), dtype=np.int8) - 1) @ sizes) >= found).sum())
        for count in _portions(DRAWN, m)
    )
    return (1 + as_large) / (1 + DRAWN)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm (1979): the smallest of m times m, the next times m − 1, …, none below one before.

    Rejecting those that are at most α keeps the probability of any false rejection at most α, whatever depends on
    what.
    """
    adjusted, most = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = most
    return adjusted


def seeds_and_prompts(arm: ArrayLike, other: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of an arm less that of another, with a hierarchical bootstrap interval over seeds and prompts.

    A resample draws seeds of each arm, and prompts, which both arms share. The quantiles are the plain ones: with S
    seeds the share of the variance that comes from seeds is (S − 1)/S of what it should be, for S = 3 two thirds.

    Args:
        arm: [S, n], a number for each seed and prompt.
        other: [T, n], of the same prompts.
        seed: Of the resamples.
    """
    first, second = np.asarray(arm, dtype=np.float64), np.asarray(other, dtype=np.float64)
    n, generator, means = first.shape[1], _generator(seed), []
    for count in _portions(RESAMPLES, n):
        prompts = generator.integers(0, n, (count, n))
        drawn = [
            np.take_along_axis(_mean_of_drawn(part, count, generator), prompts, axis=1).mean(axis=1)
            for part in (first, second)
        ]
        means.append(drawn[0] - drawn[1])
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(first.mean() - second.mean()), float(low), float(high))


def _mean_of_drawn(values: Numbers, count: int, generator: np.random.Generator) -> Numbers:
    """[count, n]: each row the mean over as many seeds as there are, drawn with replacement."""
    seeds = len(values)
    weights = np.zeros((count, seeds))
    np.add.at(weights, (np.arange(count)[:, None], generator.integers(0, seeds, (count, seeds))), 1 / seeds)
    return np.asarray(weights @ values)


def welch_difference(arm: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """Mean of an arm's seeds less that of another's, with Welch's 95% interval (1947).

    The degrees of freedom are rounded down.

    Args:
        arm: A number for each seed.
        other: Of the other arm.

    Returns:
        None for an arm of one seed.
    """
    if min(len(arm), len(other)) < 2:
        return None
    mean = float(np.mean(arm) - np.mean(other))
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (arm, other)]
    if not sum(parts):
        return Estimate(mean, mean, mean)
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (arm, other), strict=True)
    )
    half = student_t_975(max(1, int(degrees + _ROUNDING))) * math.sqrt(sum(parts))
    return Estimate(mean, mean - half, mean + half)


def assignment_p(arm: Sequence[float], other: Sequence[float], seed: int = 0) -> float:
    """The two-sided p-value of the permutation test of two groups: seeds dealt to the arms in every other way.

    With 3 and 3 seeds there are 20 ways, so that no p-value is below 0.1.

    Args:
        arm: A number for each seed.
        other: Of the other arm.
        seed: Of the assignments, where there are more than 200,000 and only some are drawn.
    """
    pooled, first = np.array([*arm, *other], dtype=np.float64), len(arm)
    pooled -= pooled.mean()  # then the difference of means is proportional to the sum of one group
    found = abs(float(pooled[:first].sum())) - _ROUNDING * float(np.abs(pooled).sum())
    if math.comb(len(pooled), first) <= EXACT_ASSIGNMENTS:
        sums = [abs(float(pooled[list(group)].sum())) for group in combinations(range(len(pooled)), first)]
        return sum(value >= found for value in sums) / len(sums)
    generator = _generator(seed)
    drawn = (abs(float(generator.permutation(pooled)[:first].sum())) for _ in range(DRAWN))
    return (1 + sum(value >= found for value in drawn)) / (1 + DRAWN)


def _numbers(values: ArrayLike) -> Numbers:
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        raise ValueError("no differences")
    return found


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, Purpose.RESAMPLES))


def _portions(count: int, width: int) -> list[int]:
    """Numbers of rows that are held in memory at once, `count` in all."""
    most = max(1, _AT_ONCE // width)
    return [min(most, count - start) for start in range(0, count, most)]
