"""Kullback–Leibler divergence from the reference: per-token estimates and the adaptive coefficient."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1", max_log_ratio: float = 20.0
) -> Tensor:
    """An estimate of KL(π ‖ π_ref) per token from tokens sampled by π, in nats.

    k1 = log π − log π_ref;  k2 = k1² / 2;  k3 = exp(−k1) − 1 + k1.
    E_π[k1] = E_π[k3] = KL and k3 ≥ 0; k2 is biased but its gradient as a loss is the KL's (Schulman 2020,
    "Approximating KL divergence").

    Args:
        logprobs: log π of the tokens, any shape.
        ref_logprobs: log π_ref, the same shape.
        estimator: "k1", "k2" or "k3".
        max_log_ratio: In k3 the log-ratio is clamped to ± this before exp.

    Returns:
        That shape.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(f"shapes differ: {tuple(logprobs.shape)} and {tuple(ref_logprobs.shape)}")
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return 0.5 * k1.square()
    if estimator == "k3":
        clamped = k1.clamp(-max_log_ratio, max_log_ratio)
        return torch.expm1(-clamped) + clamped
    raise ValueError(f'estimator must be "k1", "k2" or "k3", got "{estimator}"')


def adapt_kl_coefficient(
    coefficient: float, kl: float, target: float, responses: int, horizon: float, error_limit: float = 0.2
) -> float:
    """The next β of the adaptive controller (Ziegler et al. 2019, section 2.2).

    β ← β · (1 + clip(kl / target − 1, −error_limit, error_limit) · responses / horizon)

    Args:
        coefficient: β of this step.
        kl: Mean KL per response in this step, in nats.
        target: The KL per response to hold, in nats, > 0.
        responses: How many responses this step had.
        horizon: In responses; more than error_limit · responses, or β could fall to 0 or below.
        error_limit: No larger relative error counts.
    """
    if horizon <= error_limit * responses:
        raise ValueError(f"horizon must be more than {error_limit} · {responses} responses, got {horizon}")
    error = min(max(kl / target - 1.0, -error_limit), error_limit)
    return coefficient * (1.0 + error * responses / horizon)
