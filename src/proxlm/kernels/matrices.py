"""The matrix of a linear layer as it is in force: of transformers' two kinds of layers, with adapters folded in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Matrix(NamedTuple):
    """columns() → W [K, N], made anew where adapters change it; bias [N] or None; like: the layer's own weights, for
    their number, dtype and device."""

    columns: Callable[[], Tensor]
    bias: Tensor | None
    like: Tensor


def matrix_of(module: Any) -> Matrix | None:
    """The matrix of a plain linear layer, or of one under LoRA adapters (W + α/r · B A); None of anything else."""
    from transformers.pytorch_utils import Conv1D

    layer, adapters = _layer_and_adapters(module)
    if type(layer) not in (nn.Linear, Conv1D) or adapters is None:
        return None
    turned = type(layer) is nn.Linear

    @torch.no_grad()
    def columns() -> Tensor:
        weight = layer.weight
        for name in adapters:
            weight = weight + module.get_delta_weight(name)
        return (weight.T if turned else weight).detach()

    bias = None if layer.bias is None else layer.bias.detach()
    return Matrix(columns, bias, layer.weight.detach())


def is_plain(*modules: Any) -> bool:
    """Whether all are linear layers without bias and nothing else (no adapter around them)."""
    return all(type(module) is nn.Linear and module.bias is None for module in modules)


class Factors(NamedTuple):
    """A linear layer without bias, in parts: x → x Wᵀ + Σ scale · x Aᵀ Bᵀ; W [N, K], A [r, K], B [N, r]."""

    weight: Tensor
    adapters: list[tuple[Tensor, Tensor, float]]


def factors_of(module: Any) -> Factors | None:
    """The parts of a plain linear layer without bias, or of one under LoRA adapters; None of anything else."""
    layer, names = _layer_and_adapters(module)
    if not is_plain(layer) or names is None:
        return None
    adapters = [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for name in names
    ]
    return Factors(layer.weight, adapters)


def _layer_and_adapters(module: Any) -> tuple[Any, list[str] | None]:
    """The layer itself, and the names of the PEFT adapters added to it now; None if they do more than add B A x."""
    layer = getattr(module, "base_layer", module)
    return layer, [] if layer is module else _adapters_in_force(module)


def _adapters_in_force(module: Any) -> list[str] | None:
    """Those names of a PEFT layer, or None."""
    if not hasattr(module, "get_delta_weight") or module.training:
        return None
    if module.merged or module.disable_adapters:
        return []
    names = [name for name in module.active_adapters if name in module.lora_A]
    others = (getattr(module, kind, {}) for kind in ("use_dora", "lora_bias", "lora_variant"))
    if any(found.get(name) for found in others for name in names):
        return None
    return names
