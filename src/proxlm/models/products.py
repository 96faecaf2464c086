"""The linear layers of a block as matrix products that keep little and are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from proxlm.models.widened import widens


def is_plain(*modules: Any) -> bool:
    """Whether all are linear layers without bias and nothing else (no adapter around them)."""
    return all(type(module) is nn.Linear and module.bias is None for module in modules)


def ready(module: Any, frozen: bool, bfloat16: bool) -> Callable[[Tensor], Tensor]:
    """The module; frozen, a plain linear layer as `one_product`. Others (adapters around a layer) as they are."""
    return (one_product([module], bfloat16) if frozen else None) or module


def one_product(
    modules: Sequence[Any], bfloat16: bool, round_output: bool = True
) -> Callable[[Tensor], Tensor] | None:
    """x [..., H] → all outputs side by side, for weights that stay as they are; None unless all are plain layers.

    The weights are copied once, in the dtype of the product and column by column, which is how a product with few
    rows reads them: with one row it takes half the time. A bf16 product that is widened keeps them wide, and need
    not round what comes out.
    """
    from transformers.pytorch_utils import Conv1D

    kinds = {type(module) for module in modules}
    if kinds not in ({nn.Linear}, {Conv1D}) or len({module.bias is None for module in modules}) > 1:
        return None
    columns = [m.weight if type(m) is Conv1D else m.weight.T for m in modules]
    dtype = torch.bfloat16 if bfloat16 else columns[0].dtype
    weight = torch.cat([w.detach() for w in columns], -1).to(dtype).contiguous()
    bias = None if modules[0].bias is None else torch.cat([m.bias.detach() for m in modules]).to(dtype)
    if bfloat16 and widens(weight.device):
        return _wide_product(weight.float(), None if bias is None else bias.float(), round_output)
    return lambda x: F.linear(x.to(dtype), weight.T, bias)


def _wide_product(weight: Tensor, bias: Tensor | None, round_output: bool) -> Callable[[Tensor], Tensor]:
    def product(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = F.linear(x.bfloat16().float(), weight.T, bias)
        return y.bfloat16() if round_output else y

    return product


def joined(modules: Sequence[Any], frozen: bool, bfloat16: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """x [..., H] → the output of each module on x. Frozen plain linear layers are one product.

    For one token a row that spares calls; a training pass gains nothing by it.
    """
    together = one_product(modules, bfloat16) if frozen else None
    if together is None:
        single = [ready(module, frozen, bfloat16) for module in modules]
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
