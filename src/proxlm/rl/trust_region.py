"""The trust-region step: conjugate gradients on the Fisher matrix, and a line search (Schulman et al. 2015, TRPO).

Everything works on one flat vector of parameters [P]; the network is behind the functions given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """x with M x ≈ target for a symmetric positive definite M.

    Exact after P iterations (in exact arithmetic).

    Args:
        product: v → M v, for v [P].
        target: [P].
        iterations: The most iterations.
        tolerance: Stops early once |M x − target|² ≤ tolerance · |target|².

    Returns:
        x [P].
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    norm = float(residual.dot(residual))
    goal = tolerance * norm
    for _ in range(iterations):
        if norm <= goal:
            break
        image = product(direction)
        curvature = float(direction.dot(image))
        if curvature <= 0:
            # Rounding has used up what the matrix can tell; what is found so far is a descent direction.
            break
        length = norm / curvature
        x = x + length * direction
        residual = residual - length * image
        last, norm = norm, float(residual.dot(residual))
        direction = residual + norm / last * direction
    return x


class TrustRegionStep(NamedTuple):
    """What the line search found.

    step [P]: to add to the parameters, zero if none was accepted; kl, improvement: measured there; tries: how often
    the step was halved; accepted: whether a step was good.
    """

    step: Tensor
    kl: float
    improvement: float
    tries: int
    accepted: bool


def natural_step(
    gradient: Tensor, fisher: Callable[[Tensor], Tensor], delta: float, iterations: int
) -> Tensor:
    """√(2 δ / sᵀ F s) · s with F s = gradient: the longest step whose quadratic KL is δ, in nats.

    On a quadratic objective with Hessian −F this is along Newton's step.

    Args:
        gradient: Of what is to rise [P].
        fisher: v → F v.
        delta: δ.
        iterations: Of conjugate gradients.

    Returns:
        The step [P].
    """
    direction = conjugate_gradient(fisher, gradient, iterations)
    curvature = float(direction.dot(fisher(direction)))
    if not curvature > 0 or not math.isfinite(curvature):
        return torch.zeros_like(gradient)
    return math.sqrt(2 * delta / curvature) * direction


def trust_region_step(
    gradient: Tensor,
    fisher: Callable[[Tensor], Tensor],
    measure: Callable[[Tensor], tuple[float, float]],
    delta: float,
    iterations: int = 10,
    halvings: int = 10,
) -> TrustRegionStep:
    """The natural step, halved until the surrogate rises and the true mean KL is at most δ.

    Args:
        gradient: Of the surrogate [P].
        fisher: v → F v, damped.
        measure: step → (the surrogate's rise, the mean KL in nats) with the step taken.
        delta: δ > 0.
        iterations: Of conjugate gradients.
        halvings: How often the step may be halved.
    """
    step = natural_step(gradient, fisher, delta, iterations)
    for tries in range(halvings + 1):
        trial = step * 0.5**tries
        improvement, kl = measure(trial)
        if improvement > 0 and kl <= delta and math.isfinite(kl):
            return TrustRegionStep(trial, kl, improvement, tries, True)
    return TrustRegionStep(torch.zeros_like(step), 0.0, 0.0, halvings, False)
