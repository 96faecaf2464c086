"""Stacking: how much each of several judges of the same comparisons is to count; a pure function."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def stacking_weights(leads: Tensor, steps: int = 2000) -> Tensor:
    """The w ≥ 0 that minimise Σ_i log(1 + exp(−w · d_i)) + ½ |w s|²: logistic regression on the members' leads d.

    Weights that may not be negative are what makes a combination of models that agree generalise (Breiman 1996,
    Stacked Regressions; Wolpert 1992). The problem is convex; it is solved by projected gradient descent with
    Nesterov's momentum and restarts (Beck and Teboulle 2009; O'Donoghue and Candès 2015). s is each member's root
    mean square lead, so that the ridge, which keeps weights finite where all comparisons are explained, has no units.

    Args:
        leads: d, each member's score of the chosen completion minus that of the rejected one [n, M].
        steps: Most steps.

    Returns:
        w [M] float64.
    """
    found = leads.double()
    size = found.square().mean(0).sqrt().clamp_min(1e-12)  # each member in its own unit
    scaled = found / size
    # The largest curvature: a quarter of that of the leads' second moments.
    rate = 1 / (float(torch.linalg.matrix_norm(scaled, 2)) ** 2 / 4 + 1)
    weights = torch.full_like(size, 1 / len(size))
    ahead, pace = weights, 1.0
    for _ in range(steps):
        gradient = -(scaled.T @ torch.sigmoid(-scaled @ ahead)) + ahead
        new = (ahead - rate * gradient).clamp_min(0.0)
        moved = new - weights
        if float((new - ahead).abs().max()) <= 1e-12:  # the step changes nothing: the optimum
            return new / size
        if float((ahead - new) @ moved) > 0:  # momentum points uphill
            pace, ahead, weights = 1.0, new, new
            continue
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, pace, weights = new + (pace - 1) / faster * moved, faster, new
    return weights / size
