"""Gradients of several batches and of their parts, for the noise scale."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.noise_scale import noise_estimates
from proxlm.train.supervised.batches import Batches
from proxlm.train.supervised.objective import Objective
from proxlm.types import Progress


def batch_estimates(
    objective: Objective,
    batches: Batches,
    count: int,
    parts: int,
    budget: TokenBudget,
    progress: Progress = lambda _done, _total: None,
) -> list[tuple[float, float]]:
    """Estimates of |G|² and tr Σ from batches of several parts, at the weights as they are.

    The gradient of a batch is the mean of its parts', which have about equally many tokens.

    Args:
        objective: The model, its data and its loss.
        batches: Draws the rows of a part.
        count: Number of batches.
        parts: Parts of a batch.
        budget: The most tokens in a pass.
        progress: Called with the parts done and their number.

    Returns:
        A pair for each batch; tr Σ is that of a single token.
    """
    parameters = [p for _, p in objective.trainable()]

    def clear() -> None:
        for p in parameters:
            p.grad = None

    drawn, tokens = list[tuple[float, float]](), 0.0
    for batch in range(count):
        total = [torch.zeros_like(p) for p in parameters]
        small = 0.0
        for part in range(parts):
            clear()
            rows = batches.next()
            within_memory(budget, partial(objective.gradient, rows), objective.lengths[rows], clear)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            small += _norm2(gradients) / parts
            torch._foreach_add_(total, gradients, alpha=1 / parts)
            tokens += float(objective.lengths[rows].sum()) / (count * parts)
            progress(batch * parts + part + 1, count * parts)
        drawn.append((small, _norm2(total)))
    clear()
    return [noise_estimates(small, big, tokens, parts * tokens) for small, big in drawn]


def _norm2(tensors: list[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)
