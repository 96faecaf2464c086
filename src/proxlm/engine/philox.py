"""Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

The number that picks a token is a function of (seed, stream, step, prompt id, sample index, position) and of
nothing else, so what is sampled does not depend on the batch, the order, the number of workers or a resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a · b, for 32-bit numbers held in int64 (whose product could overflow it)."""
    low = (a & 0xFFFF) * b
    high = (a >> 16) * b + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds. counter: four int64 tensors of one shape with 32-bit values; key: two 32-bit numbers.

    Returns: four int64 tensors of that shape with independent uniform 32-bit values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(
    seed: int, stream: int, step: int, prompt_ids: Tensor, samples: Tensor, positions: int
) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits for `positions` tokens of each response.

    seed, stream (0 training, 1 evaluation, ...) and step in [0, 2**32); prompt_ids and samples [B] int64 in that
    range. Returns: [B, positions] float64.
    """
    shape = (len(prompt_ids), positions)
    counter = (
        torch.arange(positions).expand(shape),
        samples[:, None].expand(shape),
        prompt_ids[:, None].expand(shape),
        torch.full(shape, step),
    )
    a, b, _, _ = philox(counter, (seed & _MASK, stream & _MASK))
    return ((a >> 5) * 2**26 + (b >> 6)).double() / 2**53
