"""The weights of a linear layer with its LoRA adapters: merged for decoding, as factors for training.

Knows torch's `nn.Linear`, transformers' `Conv1D` (GPT-2) and PEFT's LoRA layers around either. What it does not know
(DoRA, adapters with a bias, a layer in training mode where dropout may be on) is left to the module's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class MergedWeight(NamedTuple):
    """A linear layer's weight with its adapters merged in.

    Attributes:
        columns: Returns W [K, N]; computed at each call where there are adapters.
        bias: [N] or None.
        base: The layer's own weight, for its size, dtype and device.
    """

    columns: Callable[[], Tensor]
    bias: Tensor | None
    base: Tensor


def merged_weight(module: Any) -> MergedWeight | None:
    """The merged weight of a linear layer, W + α/r · B A under LoRA; None for any other module."""
    from transformers.pytorch_utils import Conv1D

    layer, adapters = _layer_and_adapters(module)
    if type(layer) not in (nn.Linear, Conv1D) or adapters is None:
        return None
    transposed = type(layer) is nn.Linear

    @torch.no_grad()
    def columns() -> Tensor:
        weight = layer.weight
        for name in adapters:
            weight = weight + module.get_delta_weight(name)
        return (weight.T if transposed else weight).detach()

    bias = None if layer.bias is None else layer.bias.detach()
    return MergedWeight(columns, bias, layer.weight.detach())


class LoraFactors(NamedTuple):
    """A linear layer without bias as x → x Wᵀ + Σ scale · x Aᵀ Bᵀ.

    Attributes:
        weight: W [N, K].
        adapters: (A [r, K], B [N, r], scale) of each adapter in force.
    """

    weight: Tensor
    adapters: list[tuple[Tensor, Tensor, float]]


def lora_factors(module: Any) -> LoraFactors | None:
    """The factors of a plain linear layer without bias, or of one under LoRA adapters; None for any other module."""
    layer, names = _layer_and_adapters(module)
    layer_type: type = type(layer)
    if layer_type is not nn.Linear or layer.bias is not None or names is None:
        return None
    adapters = [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for name in names
    ]
    return LoraFactors(layer.weight, adapters)


def _layer_and_adapters(module: Any) -> tuple[Any, list[str] | None]:
    """The layer itself, and the names of its PEFT adapters in force; None if they do more than add B A x."""
    layer = getattr(module, "base_layer", module)
    return layer, [] if layer is module else _active_adapters(module)


def _active_adapters(module: Any) -> list[str] | None:
    """The names of a PEFT layer's adapters in force, or None if this module does not know what they do."""
    if not hasattr(module, "get_delta_weight") or module.training:
        return None
    if module.merged or module.disable_adapters:
        return []
    names = [name for name in module.active_adapters if name in module.lora_A]
    others = (getattr(module, kind, {}) for kind in ("use_dora", "lora_bias", "lora_variant"))
    if any(found.get(name) for found in others for name in names):
        return None
    return names
