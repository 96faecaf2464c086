"""A random generator for each response of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Rollout


def row_generators(rollout: Rollout, seed: int, purpose: Purpose, step: int) -> Iterator[torch.Generator]:
    """A generator for each row [B], by its prompt and its repeat: the same whatever rows stand between them.

    Args:
        rollout: The responses.
        seed: Of the run.
        purpose: What the numbers are for.
        step: The PPO step, from 0.
    """
    repeats = Counter[int]()
    for prompt in rollout.prompts:
        derived = derive_seed(seed, Purpose(purpose), step, prompt.id, repeats[prompt.id])
        yield torch.Generator().manual_seed(derived)
        repeats[prompt.id] += 1
