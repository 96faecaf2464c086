"""Products with weights that stay as they are, in the layout that the rows they meet need.

Decoding multiplies few rows, one for each text that is being written. For those an ordinary product spends its time
on getting at the weights, so they are copied once into another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Smaller matrices are not worth oneDNN's own cost of a call.
PACKED_SIZE = 2**17


class FrozenProduct:
    """x [..., K] → x W + b [..., N], of the layers `modules` on the same x side by side.

    On a CPU, in float32, large matrices are packed by oneDNN: 64 rows take 0.5 to 0.9 of the time of the ordinary
    product, and what comes out for a row does not depend on how many others there are. One row alone reads the
    matrix column by column. Modules are linear layers (see `one_product`) whose weights must not change.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype | None = None) -> None:
        from transformers.pytorch_utils import Conv1D

        columns = [(m.weight if type(m) is Conv1D else m.weight.T).detach() for m in modules]
        self.dtype = dtype or columns[0].dtype
        self.parts = columns
        biases = [m.bias for m in modules]
        self.bias = None if biases[0] is None else torch.cat([b.detach() for b in biases]).to(self.dtype)
        size = sum(part.numel() for part in columns)
        self.packs = size >= PACKED_SIZE and can_pack(columns[0].device, self.dtype)
        self.columns: Tensor | None = None
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed is None:
            if not self.packs or x.numel() == x.shape[-1]:
                if self.columns is None:
                    self.columns = torch.cat(self.parts, -1).to(self.dtype).contiguous()
                return F.linear(x, self.columns.T, self.bias)
            rows = torch.cat([part.T for part in self.parts]) if len(self.parts) > 1 else self.parts[0].T
            self.packed, self.columns = torch.ops.mkldnn._reorder_linear_weight(rows, None), None
        return _packed_product(x, self.packed, self.bias)


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return y


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights for oneDNN as we ask it to, and the products are right."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    # torch.compile's own way to oneDNN; there is no public one, so it is tried.
    try:
        weight, x = torch.arange(12.0).view(4, 3), torch.eye(3)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        return bool(torch.equal(_packed_product(x, packed, None), weight.T))
    except (AttributeError, RuntimeError, TypeError):
        return False


def one_product(modules: Sequence[Any], bfloat16: bool) -> FrozenProduct | None:
    """All outputs of the modules on the same x side by side; None unless all are plain linear layers, all with a
    bias or all without."""
    from transformers.pytorch_utils import Conv1D

    kinds = {type(module) for module in modules}
    if kinds not in ({nn.Linear}, {Conv1D}) or len({module.bias is None for module in modules}) > 1:
        return None
    return FrozenProduct(modules, torch.bfloat16 if bfloat16 else None)
