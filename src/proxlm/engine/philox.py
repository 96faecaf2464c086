"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

The number that picks a token is a function of (seed, stream, step, prompt id, sample index, position) and of
nothing else, so what is sampled does not depend on the batch, the order, the number of workers or a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from proxlm.engine.request import SampleSeed

Words = npt.NDArray[np.uint64]
"""32-bit numbers, in 64 bits so that their products fit."""

_MASK, _BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four arrays that broadcast to one shape.
        key: two arrays that broadcast to that shape.

    Returns:
        Four arrays of that shape, independent and uniform over the 32-bit numbers.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _BITS) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> _BITS) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def request_uniforms(seeds: Sequence[SampleSeed], count: int) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits for the next `count` tokens of each request.

    Args:
        seeds: counters of each request.
        count: how many tokens.

    Returns:
        [len(seeds), count] float64.
    """
    seed, stream, step, prompt_id, sample, position = np.array(
        [(s.seed, s.stream, s.step, s.prompt_id, s.sample, s.position) for s in seeds], dtype=np.uint64
    ).T[..., None]
    positions = position + np.arange(count, dtype=np.uint64)
    a, b, _, _ = philox((positions, sample, prompt_id, step), (seed & _MASK, stream & _MASK))
    return torch.from_numpy(((a >> np.uint64(5)) * np.uint64(2**26) + (b >> np.uint64(6))) / 2**53)
