"""Which row each element of a ragged tensor belongs to."""

from __future__ import annotations

import torch
from torch import Tensor


def row_of_element(offsets: Tensor) -> Tensor:
    """offsets [B+1] → the row number of each of the R flat elements, [R] int64."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
