"""Clipping of a gradient by its norm, of which each rank may hold a part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import nn
from torch.distributed.tensor import DTensor


def clip_gradient(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale the gradient so that its norm is at most `limit`, as torch's `clip_grad_norm_` does.

    Returns:
        The norm before, over all parameters and, of sharded ones, over all ranks.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    own = [gradient.to_local() for gradient in sharded]
    copies = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = _norm(own) ** 2
    torch.distributed.all_reduce(square, group=sharded[0].device_mesh.get_group())
    norm = (square + _norm(copies) ** 2).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in own + copies:
        gradient.mul_(factor)
    return float(norm)


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of all tensors together, in float64."""
    return torch.stack([torch.linalg.vector_norm(x.double()) for x in tensors] or [torch.zeros(())]).norm()
