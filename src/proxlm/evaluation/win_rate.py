"""Win rates: how often one system's response is preferred to another's, also at equal length. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxlm.evaluation.intervals import Estimate, wilson_interval
from proxlm.seeds import Purpose, derive_seed

Numbers = NDArray[np.float64]

RESAMPLES = 1000
# Of the regression: Gaussian priors on both coefficients, so weak that they count only where data would send one to
# infinity; and Newton's steps.
_RIDGE, _STEPS, _CLOSE, _LARGEST = 0.01, 30, 1e-6, 30.0


@dataclass(frozen=True)
class Preference:
    """What is said of two responses to a prompt.

    Attributes:
        shown_first: 1 where the response is preferred to the other one when it is shown first, ½ for a tie, else 0.
        shown_second: The same when it is shown second; of what has no order, such as a reward, the same number.
        longer: Characters by which the response is longer than the other.
    """

    shown_first: float
    shown_second: float
    longer: float

    @property
    def win(self) -> float:
        """The mean of both orders."""
        return (self.shown_first + self.shown_second) / 2


@dataclass(frozen=True)
class WinRate:
    """How often a system wins against the first one.

    Attributes:
        arm: The system.
        reference: The first one.
        won: On how many prompts it is preferred, both orders taken together.
        tied: On how many neither is.
        lost: On how many the other one is.
        rate: Wins, a tie as a half, with Wilson's 95% interval over prompts.
        equal_length: The rate at a difference of length of 0; None where `length_controlled` has none.
        longer: Mean characters by which its responses are longer.
        first: How often the response that is shown first is preferred, ½ without position bias; None: without orders.
        changed: On how many prompts the verdict changes with the order.
        failed: On how many prompts nothing was said; they are left out.
    """

    arm: str
    reference: str
    won: int
    tied: int
    lost: int
    rate: Estimate
    equal_length: Estimate | None
    longer: float
    first: Estimate | None
    changed: int
    failed: int


def win_rate(
    arm: str, reference: str, found: Sequence[Preference | None], ordered: bool, seed: int = 0
) -> WinRate:
    """The win rate of `arm`.

    Args:
        arm: The system.
        reference: The one it is compared with.
        found: For each prompt what is said; None: nothing.
        ordered: Whether each pair was shown in both orders.
        seed: Of the resamples.

    Raises:
        ValueError: Nothing is said of any prompt.
    """
    said = [one for one in found if one is not None]
    wins, longer = [one.win for one in said], [one.longer for one in said]
    first = math.fsum((one.shown_first + 1 - one.shown_second) / 2 for one in said)
    return WinRate(
        arm=arm,
        reference=reference,
        won=sum(win > 0.5 for win in wins),
        tied=sum(win == 0.5 for win in wins),
        lost=sum(win < 0.5 for win in wins),
        rate=wilson_interval(math.fsum(wins), len(wins)),
        equal_length=length_controlled(wins, longer, seed),
        longer=math.fsum(longer) / len(longer),
        first=wilson_interval(first, len(said)) if ordered else None,
        changed=sum(one.shown_first != one.shown_second for one in said),
        failed=len(found) - len(said),
    )


def length_controlled(wins: ArrayLike, longer: ArrayLike, seed: int = 0) -> Estimate | None:
    """The win rate at equal length, with a 95% bootstrap interval over prompts.

    A logistic regression of the wins on the difference of length, P(win) = σ(θ + φ · tanh(d / std d)), as in
    length-controlled AlpacaEval (Dubois et al. 2024) without its term for the difficulty of an instruction, which
    takes many models to fit. The rate is σ(θ), what is left where d = 0.

    Args:
        wins: [n], 1, 0, or between for a tie.
        longer: [n], d, by how much the response is longer than the other.
        seed: Of the resamples.

    Returns:
        None where nothing can be said of equal length: all differences have one sign, or a difference of length
        separates the wins from the rest, so that the regression has no finite solution.
    """
    y, d = np.asarray(wins, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    if not d.std() or not d.min() <= 0 <= d.max() or _separated(y, d):
        return None
    x, n = np.tanh(d / d.std()), len(y)
    generator = np.random.default_rng(derive_seed(seed, Purpose.RESAMPLES))
    drawn = generator.integers(0, n, (RESAMPLES, n))
    counts = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
    mean = float(_rates_at_zero(y, x, np.ones((1, n)))[0])
    low, high = np.quantile(_rates_at_zero(y, x, counts), [0.025, 0.975])
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))


def _separated(y: Numbers, d: Numbers) -> bool:
    """Whether all wins lie on one side of all losses, or there are only wins or only losses.

    Where both meet at 0 alone, the rate there is theirs.
    """
    won, lost = d[y > 0], d[y < 1]  # a tie is both
    if not len(won) or not len(lost):
        return True
    sides = ((won.min(), lost.max()), (lost.min(), won.max()))
    return any(least > most or least == most != 0 for least, most in sides)


def _rates_at_zero(y: Numbers, x: Numbers, counts: Numbers) -> Numbers:
    """σ(θ) of the regression of y on x, for each row of `counts`, which says how often a prompt counts."""
    theta, phi = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(theta[:, None] + phi[:, None] * x, -_LARGEST, _LARGEST)))
        error, weight = counts * (y - p), counts * p * (1 - p)
        g0, g1 = error.sum(axis=1) - _RIDGE * theta, error @ x - _RIDGE * phi
        h00, h01, h11 = weight.sum(axis=1) + _RIDGE, weight @ x, weight @ (x * x) + _RIDGE
        determinant = h00 * h11 - h01 * h01
        steps = np.clip(np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant, -1, 1)
        theta, phi = theta + steps[0], phi + steps[1]
        if np.abs(steps).max() < _CLOSE:
            break
    return np.asarray(1 / (1 + np.exp(-theta)))
