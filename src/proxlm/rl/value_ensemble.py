"""Several critics over one trunk: their values as one, how far they disagree, and what each of them learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ensemble:
    """K value heads and how their values become one.

    Attributes:
        heads: K, at least 1.
        combine: "mean", "min" or "lower_bound".
        pessimism: k of "lower_bound", mean − k · deviation.
        spread: Deviation of the heads' outputs at the start, for a state whose elements have mean square 1.
    """

    heads: int = 1
    combine: str = "mean"
    pessimism: float = 1.0
    spread: float = 0.1


ONE_HEAD = Ensemble()


def combined_value(values: Tensor, combine: str, pessimism: float = 1.0) -> Tensor:
    """One value of K: their mean, their minimum (Fujimoto et al. 2018), or mean − k · deviation over the heads.

    In float64, so that equal values give exactly that value. The deviation is the population's. So min ≤ mean,
    mean − √(K − 1) · deviation ≤ min ≤ mean − deviation / √(K − 1), and of two heads min = mean − deviation.

    Args:
        values: V of each head [..., K].
        combine: "mean", "min" or "lower_bound".
        pessimism: k of "lower_bound".

    Returns:
        [...] in the precision of the values.
    """
    if combine == "min":
        return values.amin(-1)
    exact = values.double()
    mean = exact.mean(-1)
    if combine == "mean":
        return mean.to(values.dtype)
    if combine == "lower_bound":
        return (mean - pessimism * exact.std(-1, correction=0)).to(values.dtype)
    raise ValueError(f'combine must be "mean", "min" or "lower_bound", got "{combine}"')


def spread_of_heads(values: Tensor) -> Tensor:
    """The population's standard deviation over the heads, [..., K] → [...] float64: 0 where all agree."""
    return values.double().std(-1, correction=0)


def differences_of_heads(noise: Tensor) -> Tensor:
    """√(K / (K − 1)) · (n_k − mean of n): what K heads differ by at the start, with their mean as it was.

    If the n_k are independent with variance σ², so that each difference has that variance, the expected population
    variance over the heads is σ².

    Args:
        noise: n [K, ...].

    Returns:
        [K, ...], summing to 0 over the heads; 0 for K = 1.
    """
    heads = len(noise)
    return (noise - noise.mean(0)) * math.sqrt(heads / max(1, heads - 1))


def bootstrap_factors(uniforms: Tensor, share: float) -> Tensor:
    """What a response counts in the loss of each head: 1 / p for a head that learns from it, else 0 (Osband 2016).

    Each head learns from a response with probability p, so the expectation of a factor is 1, and that of every head's
    loss the loss without shares.

    Args:
        uniforms: Independent numbers in [0, 1), [..., K].
        share: p, above 0 and at most 1.

    Returns:
        [..., K] float32.
    """
    return torch.where(uniforms < share, 1.0 / share, 0.0).float()


def ensemble_loss(losses: Tensor, weights: Tensor, factors: Tensor | None = None) -> Tensor:
    """(1 / K) Σ_k Σ_t w_t b_tk ℓ_tk: the mean of the heads' losses.

    Args:
        losses: ℓ of each token and head [R, K].
        weights: w of each token [R].
        factors: b of each token and head [R, K], see `bootstrap_factors`; None: 1.
    """
    if losses.shape[:1] != weights.shape or (factors is not None and factors.shape != losses.shape):
        shapes = [tuple(x.shape) for x in (losses, weights, factors) if x is not None]
        raise ValueError(f"losses, weights and factors do not fit: {', '.join(map(str, shapes))}")
    weighted = weights[:, None] * losses
    return (weighted if factors is None else factors * weighted).sum() / losses.shape[1]
