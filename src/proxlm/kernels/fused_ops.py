"""Norm, gate, rotation and padding of a block in few passes over memory, with backward passes that keep little.

Where matrix products are fast, what is left are the passes over the tokens' states between them. Each operation has
its derivative written out and cannot be differentiated twice. Without gradients they run as plain functions, for an
autograd function costs as much as the operation itself for a single token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight · x / √(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019); the mean in float32.

    x [..., H], weight [H]. Keeps x and one number for each state.
    """
    if not torch.is_grad_enabled():
        return _normed(x, weight, eps)[0]
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / √(mean(x²) + eps)."""
    wide = x if x.dtype == torch.float64 else x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype) * weight, inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        unit = x * inverse
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype)
        grad_unit = grad * weight
        along = (grad_unit * unit).mean(-1, keepdim=True)
        return grad_unit.addcmul(unit, along, value=-1).mul_(inverse).to(x.dtype), grad_weight, None


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up (Shazeer 2020), elementwise. Keeps the two inputs only."""
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    y: Tensor = _GatedSilu.apply(gate, up)
    return y


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the layout of transformers: halves, not pairs.

    x [..., D]; cos [..., D] and sin [..., D / 2] of the angles, broadcast to it; cos has those of both halves. Keeps
    nothing of x.
    """
    if not torch.is_grad_enabled():
        return _rotated(x, cos, sin, 1)
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Rotate points, whose two coordinates are an element of the first half and its partner in the second."""
    half = x.shape[-1] // 2
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    y = torch.mul(x, cos, out=torch.empty_like(x, memory_format=torch.contiguous_format))
    y[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    y[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return y


def scatter_rows(x: Tensor, index: Tensor, size: int) -> Tensor:
    """Zeros [size, ...] with the rows of x [n, ...] at `index` [n], each place once.

    torch's own index_copy keeps x for its backward pass; this keeps the index only.
    """
    y: Tensor = _ScatterRows.apply(x, index, size)
    return y


class _ScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, index, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None
