"""Linear layers of a block as callables: for training, LoRA in few products; for decoding, copied and joined weights.

Without adapters a training pass calls the module itself. PEFT's own LoRA layer makes a scaled copy and a sum of its
output's size; here the adapter's product is added to the layer's in place, with its derivatives written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxlm.kernels.inference_products import Weights, inference_product
from proxlm.kernels.linear_weights import lora_factors


def linear(module: Any, weights: Weights | None) -> Callable[[Tensor], Tensor]:
    """A linear layer as a callable; a module that is not known here is itself.

    Args:
        module: The layer.
        weights: For decoding: what its copied weights are rounded to. None: for training.
    """
    return (inference_product([module], weights) if weights else _trained(module)) or module


def linears(modules: Sequence[Any], weights: Weights | None) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """x [..., H] → the output of each module on x; for decoding as one product where they can be, to save calls.

    Args:
        modules: Layers on the same input.
        weights: As in `linear`.
    """
    joined = inference_product(modules, weights) if weights else None
    if joined is not None:
        widths = [module.out_features for module in modules]
        return lambda x: joined(x).split(widths, -1)
    single = [linear(module, weights) for module in modules]

    def apart(x: Tensor) -> tuple[Tensor, ...]:
        # Under autocast each layer would make, and keep, a rounded copy of its own.
        x = x.to(_product_dtype(x)) if weights is None else x
        return tuple(one(x) for one in single)

    return apart


def _trained(module: Any) -> Callable[[Tensor], Tensor] | None:
    """A linear layer without bias under one LoRA adapter, in few products; None for any other module."""
    factors = lora_factors(module)
    if factors is None or len(factors.adapters) != 1:
        return None
    a, b, scale = factors.adapters[0]
    return lambda x: lora_product(x, factors.weight, a, b, scale)


def lora_product(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x Wᵀ + scale · x Aᵀ Bᵀ (Hu et al. 2021) for x [..., K], W [N, K], A [r, K], B [N, r]."""
    y: Tensor = _LoraProduct.apply(x.flatten(0, -2).to(_product_dtype(x)), weight, a, b, scale)
    return y.view(*x.shape[:-1], -1)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a product of x has: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _LoraProduct(torch.autograd.Function):
    """Keeps x and x Aᵀ; nothing of the output's size is made but the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = x @ a.to(x.dtype).T
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return (x @ weight.to(x.dtype).T).addmm_(low, b.to(x.dtype).T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        needs_x, needs_weight, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_low = (grad @ b.to(x.dtype)).mul_(ctx.scale)
        return (
            (grad @ weight.to(x.dtype)).addmm_(grad_low, a.to(x.dtype)) if needs_x else None,
            (grad.T @ x).to(weight.dtype) if needs_weight else None,
            (grad_low.T @ x).to(a.dtype) if needs_a else None,
            (grad.T @ (low * ctx.scale)).to(b.dtype) if needs_b else None,
            None,
        )
