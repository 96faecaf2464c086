"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A number is a function of its counter and its key alone, so it depends neither on a batch nor on an order.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt
from torch import Tensor

# 32-bit numbers in 64 bits, so that their products fit: uint64 of numpy, or int64 of torch.
Numbers = TypeVar("Numbers", npt.NDArray[Any], Tensor)

MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(
    counter: tuple[Numbers, Numbers, Numbers, Numbers], key: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four arrays that broadcast to one shape. In int64 a product wraps, and keeps the bits that count.
        key: two arrays that broadcast to that shape.

    Returns:
        Four arrays of that shape, independent and uniform over the 32-bit numbers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) ^ c1 ^ k0) & MASK,
            product1 & MASK,
            ((product0 >> 32) ^ c3 ^ k1) & MASK,
            product0 & MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3
