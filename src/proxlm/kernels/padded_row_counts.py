"""Products on a few fixed numbers of rows, for oneDNN keeps half a megabyte of code for each number it has met.

Used by the decoder's products (`inference_products.py`, `int8.py`), whose number of rows changes whenever a sequence
ends or joins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# The numbers of rows that products are run with.
ROW_COUNTS = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


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
