"""Whether values are right on average: for states of the same value, and for each part of a response."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from proxlm.rl.advantages import float32_rounding
from proxlm.rl.ragged import part_of_row


class Calibration(NamedTuple):
    """The least-squares line return ≈ slope · value + …, and how far values are from returns on average.

    slope: 1 if right; below 1 values differ more than the returns that they predict, above 1 less; NaN where the
    values do not vary by more than float32's rounding. bias: mean value − mean return, 0 if right.
    """

    slope: float
    bias: float


def calibration(values: Tensor, returns: Tensor, mask: Tensor) -> Calibration:
    """Slope and bias of the critic: Cov(V, R) / Var(V) and E[V] − E[R] (Mincer and Zarnowitz 1969).

    Args:
        values: The critic's [R].
        returns: What it is to predict, independent of the values for the slope to mean something [R].
        mask: [R] bool, True for the elements that count.
    """
    if not values.shape == returns.shape == mask.shape:
        raise ValueError(f"shapes differ: {tuple(values.shape)}, {tuple(returns.shape)}, {tuple(mask.shape)}")
    v, r = values[mask].double(), returns[mask].double()
    if not len(v):
        return Calibration(math.nan, math.nan)
    bias, off = float(v.mean() - r.mean()), v - v.mean()
    spread = float(off.square().sum())
    # The mean of several heads is 0 at the start up to roundings of theirs, which a slope would blow up.
    varies = float(v.std(correction=0)) > float32_rounding(values, returns, mask)
    return Calibration(float(off.dot(r)) / spread if varies else math.nan, bias)


def mean_by_position(x: Tensor, mask: Tensor, offsets: Tensor, parts: int = 4) -> list[float]:
    """The mean of x [R] where the mask [R] is True, in each of `parts` equal shares of every row; NaN for none.

    Of advantages: 0 in every part where the critic is right on average. One that is above 0 at the beginning and
    below 0 at the end has a critic that does not see how far a response has come.
    """
    if not x.shape == mask.shape or int(offsets[-1]) != len(x):
        raise ValueError(
            f"shapes do not fit: {tuple(x.shape)}, mask {tuple(mask.shape)}, offsets end at {int(offsets[-1])}"
        )
    part = part_of_row(offsets, parts)
    return [float(x[mask & (part == k)].double().mean()) for k in range(parts)]
