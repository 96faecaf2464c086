"""Linear layers with 8-bit weights, for writing text on a CPU.

Weights are rounded to 127 steps each way for each output, states for each row, so what comes out for a row depends
on no other row. Products and sums are exact integers; what is lost is lost in the rounding (Dettmers et al. 2022,
section 2, without the outliers' own path).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from proxlm.errors import ModelError
from proxlm.kernels.padded_row_counts import with_padded_rows


class Int8Product:
    """x [..., K] → x Wᵀ + b [..., N] float32, for W [N, K]. A fourth of the memory of float32.

    Raises ModelError where this build of torch or the device has no such products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if not can_multiply(weight.device):
            raise ModelError(
                f"int8 weights: this build of torch has no int8 products for {weight.device.type}; they are for CPUs"
                " with oneDNN"
            )
        wide = weight.float()
        self.scales = _largest(wide, 127)[:, 0]
        self.packed, self.zeros = _pack((wide / self.scales[:, None]).round_())
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        y = with_padded_rows(x.float().flatten(0, -2), self._of_rows)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], -1)

    def _of_rows(self, x: Tensor) -> Tensor:
        """x [n, K] → x Wᵀ [n, N]."""
        zero = zero_point()
        steps = _largest(x, zero - 1)
        whole = (x / steps).round_().add_(zero).to(torch.uint8)
        return _product(whole, zero, self.packed, self.scales, self.zeros).mul_(steps)


def _largest(x: Tensor, steps: int) -> Tensor:
    """What one of so many steps to a row's largest size is, [n, 1]; 1 for a row of zeros."""
    largest = x.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, float(steps)).div_(steps)


def _pack(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [N, K] → what oneDNN multiplies with, and the zero points (all 0) of its rows."""
    packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
    return packed, torch.zeros(len(whole), dtype=torch.int64)


def _product(whole: Tensor, zero: int, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        whole, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


@cache
def zero_point() -> int:
    """Which 8-bit number stands for 0.

    Without instructions for it (VNNI) products are added up in pairs of 16 bits, which 7-bit states cannot overflow.
    """
    known = getattr(torch.cpu, "_is_vnni_supported", None)
    return 128 if known is not None and known() else 64


@cache
def can_multiply(device: torch.device) -> bool:
    """Whether torch has oneDNN's int8 products, which only torch.compile uses otherwise, and they are right."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        weight, x = torch.arange(-6.0, 6.0).view(4, 3), torch.eye(3, dtype=torch.uint8) + 64
        packed, zeros = _pack(weight)
        return bool(torch.equal(_product(x, 64, packed, torch.ones(4), zeros), weight.T))
    except (AttributeError, RuntimeError, TypeError):
        return False
