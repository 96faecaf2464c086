"""Products with weights that stay as they are, in the layout that the rows they meet need.

Decoding multiplies few rows, one for each text that is being written. For those an ordinary product spends its time
on getting at the weights, so they are copied once into another order; rounded, if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from proxlm.kernels.few_shapes import ROWS, in_few_shapes
from proxlm.kernels.int8 import Int8Product
from proxlm.kernels.matrices import Matrix, matrix_of
from proxlm.kernels.widened import rounded, widens

# What the copies are: in the weights' own dtype, or rounded to another one.
Weights = Literal["own", "bfloat16", "int8"]

# Smaller matrices are not worth oneDNN's own cost of a call.
PACKED_SIZE = 2**17


def one_product(
    modules: Sequence[Any], weights: Weights = "own", round_output: bool = True
) -> Callable[[Tensor], Tensor] | None:
    """x [..., K] → the outputs of the modules on it side by side, [..., N].

    None unless all have a matrix (`matrices.py`), all with a bias or all without. The weights are copied and must not
    change. round_output: what comes out of a bf16 product is rounded, too, where it need not be.
    """
    found = [matrix_of(module) for module in modules]
    matrices = [matrix for matrix in found if matrix is not None]
    if len(matrices) < len(found) or len({matrix.bias is None for matrix in matrices}) > 1:
        return None
    biases = [matrix.bias for matrix in matrices if matrix.bias is not None]
    bias = torch.cat(biases) if biases else None
    if weights == "int8":
        return Int8Product(_rows([matrix.columns() for matrix in matrices]), bias)
    if weights == "own":
        return FrozenProduct(matrices, bias)
    if not widens(matrices[0].like.device):
        return FrozenProduct(matrices, None if bias is None else bias.bfloat16(), Tensor.bfloat16)
    wide = FrozenProduct(matrices, None if bias is None else rounded(bias), rounded)
    return _between_roundings(wide, round_output)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _rows(columns: Sequence[Tensor]) -> Tensor:
    """Parts [K, n] → [N, K]."""
    return columns[0].T if len(columns) == 1 else torch.cat([part.T for part in columns])


def _between_roundings(product: FrozenProduct, round_output: bool) -> Callable[[Tensor], Tensor]:
    """A float32 product of what is rounded to bf16."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = product(rounded(x))
        return y.bfloat16() if round_output else y

    return call


class FrozenProduct:
    """x [..., K] → x W + b [..., N], W given in matrices side by side.

    Nothing is copied before it is needed. rounding: what is done to W before it is used.

    On a CPU, in float32, large matrices are packed by oneDNN: 64 rows take 0.5 to 0.9 of the time of the ordinary
    product, and what comes out for a row does not depend on how many others there are. One row alone reads the
    matrix column by column; for hundreds the ordinary product is the better one. So it is for the first call, which
    reads contexts and says nothing of how many rows there will be.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        bias: Tensor | None = None,
        rounding: Callable[[Tensor], Tensor] = _as_it_is,
    ) -> None:
        self.matrices, self.bias, self.rounding = matrices, bias, rounding
        like = matrices[0].like
        self.dtype = rounding(like[:1]).dtype
        large = sum(matrix.like.numel() for matrix in matrices) >= PACKED_SIZE
        self.packs = large and can_pack(like.device, self.dtype)
        self.met = False
        self.columns: Tensor | None = None
        self.packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        rows = x.numel() // x.shape[-1]
        first, self.met = not self.met, True
        if self.packs and (rows > ROWS[-1] or (first and rows > 1)):
            y = torch.cat([F.linear(x, part.T) for part in self._parts()], -1)
            return y if self.bias is None else y.add_(self.bias)
        if not self.packs or (rows == 1 and self.packed is None):
            if self.columns is None:
                self.columns = torch.cat(self._parts(), -1).contiguous()
            return F.linear(x, self.columns.T, self.bias)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(_rows(self._parts()), None)
            self.columns = None
        packed, bias = self.packed, self.bias
        y = in_few_shapes(x.reshape(rows, -1), lambda part: _packed_product(part, packed, bias))
        return y.view(*x.shape[:-1], -1)

    def _parts(self) -> list[Tensor]:
        """W as it is used, [K, n] each."""
        return [self.rounding(matrix.columns()) for matrix in self.matrices]


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return y


@cache
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
