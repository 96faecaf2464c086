"""The linear layers of a block as matrix products that keep little and are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from proxlm.models.frozen import Weights, one_product
from proxlm.models.gradients import are_in_place, of_weight


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


def projected(x: Tensor, *modules: nn.Linear) -> tuple[Tensor, ...]:
    """x [..., H] → x Wᵀ [..., O] for the weight [O, H] of each plain linear layer, with one gradient of x for all."""
    if not torch.is_grad_enabled():
        return tuple(module(x) for module in modules)
    flat = x.flatten(0, -2).to(_product_dtype(x))
    found: tuple[Tensor, ...] = _Projected.apply(flat, *(module.weight for module in modules))
    return tuple(y.view(*x.shape[:-1], -1) for y in found)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product with x has: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.in_place = are_in_place()
        return tuple(x @ weight.to(x.dtype).T for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        of_x = given[0] @ weights[0].to(x.dtype)
        for of_y, weight in zip(given[1:], weights[1:], strict=True):
            of_x.addmm_(of_y, weight.to(x.dtype))
        needed = ctx.needs_input_grad[1:]
        of_weights = (
            of_weight(weight, of_y, x, ctx.in_place) if need else None
            for weight, of_y, need in zip(weights, given, needed, strict=True)
        )
        return of_x, *of_weights


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(silu(x Gᵀ) · x Uᵀ) Dᵀ (Shazeer 2020) for x [..., H], G and U [I, H], D [H, I].

    Keeps x and the two products; what is between them and the last product is computed again. Under autocast the
    products are in its dtype.
    """
    y: Tensor = _GatedMLP.apply(x.flatten(0, -2).to(_product_dtype(x)), gate, up, down)
    return y.view(*x.shape[:-1], -1)


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, open_ = x @ gate.to(x.dtype).T, x @ up.to(x.dtype).T
        ctx.save_for_backward(x, gated, open_, gate, up, down)
        ctx.in_place = are_in_place()
        return F.silu(gated).mul_(open_) @ down.to(x.dtype).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, gated, open_, gate, up, down = ctx.saved_tensors
        _, needs_gate, needs_up, needs_down = ctx.needs_input_grad
        inner, active = given @ down.to(x.dtype), F.silu(gated)
        of_open = inner * active
        active.mul_(open_)
        of_down = of_weight(down, given, active, ctx.in_place) if needs_down else None
        of_gated = torch.ops.aten.silu_backward(inner.mul_(open_), gated)
        of_x = (of_gated @ gate.to(x.dtype)).addmm_(of_open, up.to(x.dtype))
        return (
            of_x,
            of_weight(gate, of_gated, x, ctx.in_place) if needs_gate else None,
            of_weight(up, of_open, x, ctx.in_place) if needs_up else None,
            of_down,
        )
