"""A value as the mean of a histogram over fixed bins, learnt by cross-entropy (Farebrother et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the histogram that a head begins at: what bins share that no target has touched.
UNIFORM_SHARE = 0.01


@dataclass(frozen=True)
class ValueBins:
    """The values z_1 … z_K that a histogram gives probabilities to, evenly spaced from low to high.

    Attributes:
        low: z_1, the lowest value that there is.
        high: z_K.
        count: K, at least 2.
        sigma: Of the Gaussian around a target, as a multiple of the spacing; 0: two-hot targets.
    """

    low: float
    high: float
    count: int
    sigma: float = 0.75

    @property
    def spacing(self) -> float:
        """ζ = z_2 − z_1."""
        return (self.high - self.low) / (self.count - 1)

    def values(self, like: Tensor) -> Tensor:
        """z [K], on the device and in the precision of `like`."""
        return torch.linspace(self.low, self.high, self.count, dtype=torch.float64).to(like)


def histogram_of(targets: Tensor, bins: ValueBins) -> Tensor:
    """The probabilities that stand for each target: two-hot, or those of a Gaussian around it (HL-Gauss).

    HL-Gauss: p_k = (Φ((z_k + ζ/2 − y) / σ) − Φ((z_k − ζ/2 − y) / σ)) / (its sum over k), by erf (Imani and White
    2018; Farebrother et al. 2024, section 3.1). Its mean is y, except within some σ of low and high, where the
    Gaussian is cut. Two-hot: the two values beside y share the probability, so the mean is y (Schrittwieser et al.
    2020, appendix F). A target beyond low or high is taken to be there.

    Args:
        targets: y [...].
        bins: The values.

    Returns:
        p [..., K] in the precision of the targets, summing to 1.
    """
    y = targets.double().clamp(bins.low, bins.high)[..., None]
    values = bins.values(y)
    if bins.sigma == 0:
        return (1.0 - (y - values).abs() / bins.spacing).clamp(min=0.0).to(targets.dtype)
    edges = torch.cat([values - bins.spacing / 2, values[-1:] + bins.spacing / 2])
    below = torch.erf((edges - y) / (bins.sigma * bins.spacing * math.sqrt(2.0)))
    return (below.diff(dim=-1) / (below[..., -1:] - below[..., :1])).to(targets.dtype)


def first_logits(targets: Tensor, bins: ValueBins) -> Tensor:
    """The logits [K] of the mean histogram of targets [N], N ≥ 1, in which every bin has some probability.

    q = (1 − ε) (the mean of p over the targets) + ε / K, ε = 0.01, so that none of its logarithms is −∞. The value is
    (1 − ε) (the mean target) + ε (low + high) / 2, with targets that are far enough from both ends.
    """
    q = histogram_of(targets, bins).mean(0)
    return ((1.0 - UNIFORM_SHARE) * q + UNIFORM_SHARE / bins.count).log()


def histogram_mean(logits: Tensor, bins: ValueBins) -> Tensor:
    """V = Σ_k softmax(logits)_k z_k; logits [..., K] → [...]."""
    return logits.softmax(-1) @ bins.values(logits)


def histogram_loss(logits: Tensor, targets: Tensor, bins: ValueBins) -> Tensor:
    """−Σ_k p_k log softmax(logits)_k with p the histogram of the target; its gradient in the logits is softmax − p.

    Args:
        logits: [..., K], with gradient.
        targets: What the value is to be [...].
        bins: The values.

    Returns:
        [...]; at least the entropy of p.
    """
    if logits.shape != (*targets.shape, bins.count):
        raise ValueError(
            f"logits {tuple(logits.shape)} are not {bins.count} for each of {tuple(targets.shape)} targets"
        )
    return -(histogram_of(targets, bins) * logits.log_softmax(-1)).sum(-1)


def beyond_bins(targets: Tensor, bins: ValueBins) -> Tensor:
    """Which targets [...] no histogram over these values can stand for: bool [...]."""
    return (targets < bins.low) | (targets > bins.high)
