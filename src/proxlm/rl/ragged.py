"""Operations on ragged tensors: rows of different lengths, one after another in a flat tensor.

Row b of a flat tensor is `flat[offsets[b] : offsets[b + 1]]`. B rows, R elements.
"""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(lengths: Tensor) -> Tensor:
    """Lengths [B] → offsets [B+1]."""
    return torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)])


def row_of_element(offsets: Tensor) -> Tensor:
    """offsets [B+1] → the row number of each of the R flat elements, [R] int64."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)


def ragged_index(offsets: Tensor, rows: Tensor) -> Tensor:
    """Flat indices of the elements of `rows`, row after row. offsets [B+1], rows [b] → [sum of lengths]."""
    lengths = (offsets[1:] - offsets[:-1])[rows]
    starts = torch.repeat_interleave(offsets[:-1][rows], lengths)
    ends = torch.cumsum(lengths, 0)
    within = torch.arange(int(lengths.sum()), device=offsets.device)
    return starts + within - torch.repeat_interleave(ends - lengths, lengths)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over each row of a ragged tensor. values [R], offsets [B+1] → [B]; an empty row gives 0."""
    sums = torch.zeros(len(offsets) - 1, dtype=values.dtype, device=values.device)
    return sums.index_add(0, row_of_element(offsets), values)


def part_of_row(offsets: Tensor, parts: int) -> Tensor:
    """Which of `parts` equal shares of its row each element is in, from 0: [N] int64."""
    lengths, row = offsets[1:] - offsets[:-1], row_of_element(offsets)
    within = torch.arange(int(offsets[-1]), device=offsets.device) - offsets[:-1][row]
    return within * parts // lengths[row]
