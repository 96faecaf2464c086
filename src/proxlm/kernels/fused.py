"""Parts of a transformer block in few passes over memory, each with a backward of its own that keeps little.

Where a matrix product is fast, what is left are the passes over the tokens' states between the products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight · x / √(mean(x²) + eps) over the last dimension (Zhang & Sennrich 2019); the mean in float32.

    x [..., H], weight [H]. Keeps x and one number for each state; not for differentiating twice.
    """
    if (
        not torch.is_grad_enabled()
    ):  # without the cost of an autograd function, which counts for a single token
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
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        unit = x * inverse
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (given * unit).flatten(0, -2).sum(0).to(weight.dtype)
        gradient = given * weight
        along = (gradient * unit).mean(-1, keepdim=True)
        return gradient.addcmul(unit, along, value=-1).mul_(inverse).to(x.dtype), of_weight, None


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
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_up = F.silu(gate).mul_(given)
        return torch.ops.aten.silu_backward(given * up, gate), of_up


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) in the layout of transformers: halves, not pairs.

    x [..., D]; cos [..., D] and sin [..., D / 2] of the angles, broadcast to it; cos has those of both halves.
    Keeps nothing of x.
    """
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, 1)
    y: Tensor = _Rotated.apply(x, cos, sin)
    return y


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(given, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """The first half and the second as the two coordinates of points that are turned by the angles."""
    half = x.shape[-1] // 2
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turned = torch.mul(x, cos, out=torch.empty_like(x, memory_format=torch.contiguous_format))
    turned[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return turned


def spread(x: Tensor, place: Tensor, size: int) -> Tensor:
    """x [n, ...] at places [n] (each once) of zeros [size, ...]."""
    y: Tensor = _Spread.apply(x, place, size)
    return y


def gathered(x: Tensor, place: Tensor) -> Tensor:
    """x[place]: as indexing, for places [n] that each stand once, so the way back need not add anything up."""
    y: Tensor = _Gathered.apply(x, place)
    return y


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(place)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, place, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return given.index_select(0, place), None, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.shape = x.shape
        return x.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return given.new_zeros(ctx.shape).index_copy_(0, place, given), None
