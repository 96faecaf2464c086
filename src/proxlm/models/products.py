"""The linear layers of a block as matrix products that keep little and are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from proxlm.models.frozen import Weights, one_product


def is_plain(*modules: Any) -> bool:
    """Whether all are linear layers without bias and nothing else (no adapter around them)."""
    return all(type(module) is nn.Linear and module.bias is None for module in modules)


def ready(module: Any, frozen: Weights | None) -> Callable[[Tensor], Tensor]:
    """The module; frozen, a plain linear layer as `one_product`. Others (adapters around a layer) as they are."""
    return (one_product([module], frozen) if frozen else None) or module


def joined(modules: Sequence[Any], frozen: Weights | None) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """x [..., H] → the output of each module on x. Frozen plain linear layers are one product.

    For one token a row that spares calls; a training pass gains nothing by it.
    """
    together = one_product(modules, frozen) if frozen else None
    if together is None:
        single = [ready(module, frozen) for module in modules]
        return lambda x: tuple(one(x) for one in single)
    widths = [m.out_features for m in modules]
    return lambda x: together(x).split(widths, -1)


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(silu(x Gᵀ) · x Uᵀ) Dᵀ (Shazeer 2020) for x [..., H], G and U [I, H], D [H, I].

    Keeps x and the two products; what is between them and the last product is computed again. Under autocast the
    products are in its dtype.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    y: Tensor = _GatedMLP.apply(x.flatten(0, -2).to(dtype), gate, up, down)
    return y.view(*x.shape[:-1], -1)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, open_ = x @ gate.to(x.dtype).T, x @ up.to(x.dtype).T
        ctx.save_for_backward(x, gated, open_, gate, up, down)
        return F.silu(gated).mul_(open_) @ down.to(x.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, gated, open_, gate, up, down = ctx.saved_tensors
        inner, active = given @ down.to(x.dtype), F.silu(gated)
        of_open = inner * active
        of_down = given.T @ active.mul_(open_)
        of_gated = torch.ops.aten.silu_backward(inner.mul_(open_), gated)
        of_x = (of_gated @ gate.to(x.dtype)).addmm_(of_open, up.to(x.dtype))
        return (
            of_x,
            (of_gated.T @ x).to(gate.dtype),
            (of_open.T @ x).to(up.dtype),
            of_down.to(down.dtype),
        )
