"""oneDNN keeps half a megabyte of code for each number of rows that a product has met, so it meets few of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# The numbers of rows that products are made for.
ROWS = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


def in_few_shapes(x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    """product(x) for x [n, K], where rows stand alone: on numbers of rows in ROWS, with zeros behind the last."""
    if len(x) > ROWS[-1]:
        return torch.cat([in_few_shapes(part, product) for part in x.split(ROWS[-1])])
    wanted = next(size for size in ROWS if size >= len(x))
    if wanted == len(x):
        return product(x)
    return product(F.pad(x, (0, 0, 0, wanted - len(x))))[: len(x)]
