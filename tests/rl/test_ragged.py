"""Ragged tensors, by hand: rows [a b c], [], [d], [e f]."""

from __future__ import annotations

import torch

from proxlm.rl.ragged import offsets_of, ragged_index, row_of_element, segment_sum

LENGTHS = torch.tensor([3, 0, 1, 2])
OFFSETS = torch.tensor([0, 3, 3, 4, 6])


def test_offsets_and_rows() -> None:
    assert torch.equal(offsets_of(LENGTHS), OFFSETS)
    assert offsets_of(LENGTHS[:0]).tolist() == [0]
    assert row_of_element(OFFSETS).tolist() == [0, 0, 0, 2, 3, 3]


def test_the_elements_of_rows_in_the_order_of_the_rows() -> None:
    assert ragged_index(OFFSETS, torch.tensor([3, 0])).tolist() == [4, 5, 0, 1, 2]
    assert ragged_index(OFFSETS, torch.tensor([2, 1, 2])).tolist() == [3, 3]
    assert ragged_index(OFFSETS, torch.tensor([1])).tolist() == []


def test_sums_of_rows() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    found = segment_sum(values, OFFSETS)
    assert found.tolist() == [7.0, 0.0, 8.0, 48.0]
    assert found.dtype == torch.float64
