"""Matrix products of the decoder, with copies of the weights in the layout that its few rows need.

Decoding multiplies few rows, one for each sequence in progress. An ordinary product of so few rows spends its time on
reading the weights, so the weights are copied once into a faster order, with adapters merged in, and rounded to bf16
or int8 where that is asked for. The copies belong to one state of the policy: after the weights change, new ones are
made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from proxlm.kernels.int8 import Int8Product
from proxlm.kernels.linear_weights import MergedWeight, merged_weight
from proxlm.kernels.padded_row_counts import ROW_COUNTS, is_onednn_bfloat16, with_padded_rows

# The copies' numbers: the weights' own dtype, or rounded.
Weights = Literal["own", "bfloat16", "int8"]

# Smaller matrices are not worth the cost of a call to oneDNN.
PACKED_SIZE = 2**17


def inference_product(modules: Sequence[Any], weights: Weights = "own") -> Callable[[Tensor], Tensor] | None:
    """Make one product of several linear layers on the same input.

    Args:
        modules: Linear layers, plain or under LoRA. Their weights must not change while the product is used.
        weights: What the copies are rounded to.

    Returns:
        x [..., K] → the outputs of the modules side by side, [..., N]; None unless each module is a linear layer
        whose weight is known (`linear_weights.py`), all with a bias or all without.
    """
    found = [merged_weight(module) for module in modules]
    merged = [weight for weight in found if weight is not None]
    if len(merged) < len(found) or len({weight.bias is None for weight in merged}) > 1:
        return None
    biases = [weight.bias for weight in merged if weight.bias is not None]
    bias = torch.cat(biases) if biases else None
    if weights == "int8":
        return Int8Product(_rows([weight.columns() for weight in merged]), bias)
    return InferenceProduct(merged, bias, torch.bfloat16 if weights == "bfloat16" else None)


def _rows(columns: Sequence[Tensor]) -> Tensor:
    """Parts [K, n] → [N, K]."""
    return columns[0].T if len(columns) == 1 else torch.cat([part.T for part in columns])


class InferenceProduct:
    """x [..., K] → x W + b [..., N], for a W whose parts stand side by side.

    Weights are copied when they are first needed. On a CPU, in float32, large matrices are packed by oneDNN: 64 rows
    take 0.5 to 0.9 of the time of the ordinary product, and the result for a row does not depend on the number of
    rows. A single row reads the matrix column by column. For hundreds of rows the ordinary product is faster; so it
    serves the first call, too, which reads contexts and says nothing about the number of rows to come.
    """

    def __init__(
        self, parts: Sequence[MergedWeight], bias: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        base = parts[0].base
        self.parts, self.dtype = parts, dtype or base.dtype
        self.bias = None if bias is None else bias.to(self.dtype)
        large = sum(part.base.numel() for part in parts) >= PACKED_SIZE
        self.packs = large and can_pack(base.device, self.dtype)
        self.called = False
        self.columns: Tensor | None = None
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        rows = x.numel() // x.shape[-1]
        first, self.called = not self.called, True
        if self.packs and (rows > ROW_COUNTS[-1] or (first and rows > 1)):
            y = torch.cat([F.linear(x, part.T) for part in self._weights()], -1)
            return y if self.bias is None else y.add_(self.bias)
        if not self.packs or (rows == 1 and self.packed is None):
            if self.columns is None:
                self.columns = torch.cat(self._weights(), -1).contiguous()
            columns, bias = self.columns, self.bias
            if not is_onednn_bfloat16(columns):
                return F.linear(x, columns.T, bias)
            y = with_padded_rows(x.reshape(rows, -1), lambda part: F.linear(part, columns.T, bias))
            return y.view(*x.shape[:-1], -1)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(_rows(self._weights()), None)
            self.columns = None
        packed, bias = self.packed, self.bias
        y = with_padded_rows(x.reshape(rows, -1), lambda part: _packed_product(part, packed, bias))
        return y.view(*x.shape[:-1], -1)

    def _weights(self) -> list[Tensor]:
        """The parts of W, [K, n] each, rounded."""
        return [part.columns().to(self.dtype) for part in self.parts]


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return y


@cache
def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights for oneDNN as it is called here, and the products are right."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    # This is what torch.compile calls; there is no public function for it, so it is tried.
    try:
        weight, x = torch.arange(12.0).view(4, 3), torch.eye(3)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return bool(torch.equal(_packed_product(x, packed, None), weight.T))
    except (AttributeError, RuntimeError, TypeError):
        return False
