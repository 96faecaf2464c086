"""The linear layers of a block as matrix products that keep little and are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxlm.kernels.frozen import Weights, one_product
from proxlm.kernels.gradients import are_in_place, of_weight
from proxlm.kernels.matrices import factors_of, is_plain


def ready(module: Any, frozen: Weights | None) -> Callable[[Tensor], Tensor]:
    """A linear layer, with adapters or without, as few products; frozen as `one_product`. Others as they are."""
    return (one_product([module], frozen) if frozen else _learning(module)) or module


def joined(modules: Sequence[Any], frozen: Weights | None) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """x [..., H] → the output of each module on x. Frozen plain linear layers are one product.

    For one token a row that spares calls; a training pass gains nothing by it.
    """
    together = one_product(modules, frozen) if frozen else None
    if together is None and not frozen and is_plain(*modules):
        weights = [module.weight for module in modules]
        return lambda x: projected(x, *weights)
    if together is None:
        single = [ready(module, frozen) for module in modules]
        return lambda x: tuple(one(x) for one in single)
    widths = [m.out_features for m in modules]
    return lambda x: together(x).split(widths, -1)


def _learning(module: Any) -> Callable[[Tensor], Tensor] | None:
    """A linear layer without bias in a training pass; None of another module, or under several adapters."""
    factors = factors_of(module)
    if factors is None or len(factors.adapters) > 1:
        return None
    weight, adapters = factors
    if not adapters:
        return lambda x: projected(x, weight)[0]
    return lambda x: adapted(x, weight, *adapters[0])


def projected(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x [..., H] → x Wᵀ [..., O] for each weight [O, H], with one gradient of x for all."""
    if not torch.is_grad_enabled():
        return tuple(F.linear(x, weight) for weight in weights)
    found: tuple[Tensor, ...] = _Projected.apply(_flat(x), *weights)
    return tuple(y.view(*x.shape[:-1], -1) for y in found)


def adapted(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x Wᵀ + scale · x Aᵀ Bᵀ (Hu et al. 2021, LoRA) for x [..., K], W [N, K], A [r, K], B [N, r]."""
    y: Tensor = _Adapted.apply(_flat(x), weight, a, b, scale)
    return y.view(*x.shape[:-1], -1)


def _flat(x: Tensor) -> Tensor:
    """[..., H] → [n, H], in the dtype that products have: autocast's, or its own."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return x.flatten(0, -2).to(dtype)


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


class _Adapted(torch.autograd.Function):
    """Keeps x and x Aᵀ; nothing of the output's size is made but the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = x @ a.to(x.dtype).T
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.in_place, ctx.scale = are_in_place(), scale
        return (x @ weight.to(x.dtype).T).addmm_(low, b.to(x.dtype).T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        needs_x, needs_weight, needs_a, needs_b, _ = ctx.needs_input_grad
        of_low = (given @ b.to(x.dtype)).mul_(ctx.scale)
        of_x = (given @ weight.to(x.dtype)).addmm_(of_low, a.to(x.dtype)) if needs_x else None
        return (
            of_x,
            of_weight(weight, given, x, ctx.in_place) if needs_weight else None,
            of_weight(a, of_low, x, ctx.in_place) if needs_a else None,
            of_weight(b, given, low * ctx.scale, ctx.in_place) if needs_b else None,
            None,
        )


def gated_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(silu(x Gᵀ) · x Uᵀ) Dᵀ (Shazeer 2020) for x [..., H], G and U [I, H], D [H, I].

    Keeps x and the two products; what is between them and the last product is computed again. Under autocast the
    products are in its dtype.
    """
    y: Tensor = _GatedMLP.apply(_flat(x), gate, up, down)
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
