"""The random numbers of requests.

The number that picks a token is a function of (seed, stream, step, prompt id, sample index, position) and of
nothing else, so what is sampled does not depend on the batch, the order, the number of workers or a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from proxlm.kernels.philox import MASK, philox

if TYPE_CHECKING:
    from proxlm.engine.request import SampleSeed


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
    a, b, _, _ = philox((positions, sample, prompt_id, step), (seed & MASK, stream & MASK))
    return torch.from_numpy(((a >> 5) * 2**26 + (b >> 6)) / 2**53)
