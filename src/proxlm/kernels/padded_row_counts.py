"""Products on a few fixed numbers of rows, for oneDNN keeps half a megabyte of code for each number it has met.

Used by the decoder's products (`inference_products.py`, `int8.py`), whose number of rows changes whenever a sequence
ends or joins; and by training passes in bf16 on a CPU (`unpadded_forward.py`), whose number of tokens always changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# The numbers of rows that products are run with.
ROW_COUNTS = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


def is_onednn_bfloat16(weight: Tensor) -> bool:
    """Whether oneDNN computes products with this weight as they are called now: in bf16 on a CPU."""
    on_cpu = weight.device.type == "cpu"
    return on_cpu and (weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))


def rounded_row_count(count: int) -> int:
    """The next multiple of 64, or of an eighth of the power of two below: eight numbers from each to the next."""
    step = max(64, 1 << max(count.bit_length() - 4, 0))
    return -(-count // step) * step


def with_padded_rows(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute product(x) on zero-padded x, so that it runs with a number of rows in ROW_COUNTS.

    Args:
        x: Rows [n, K].
        product: Maps [m, K] to [m, N]; the result for a row must depend on no other row.

    Returns:
        The product of the n rows, [n, N].
    """
    if len(x) > ROW_COUNTS[-1]:
        return torch.cat([with_padded_rows(part, product) for part in x.split(ROW_COUNTS[-1])])
    count = next(size for size in ROW_COUNTS if size >= len(x))
    if count == len(x):
        return product(x)
    return product(F.pad(x, (0, 0, 0, count - len(x))))[: len(x)]
