"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import itertools

import torch
from hypothesis import settings
from hypothesis import strategies as st

from proxlm.rl.estimators import (
    AdvantageInputs,
)

T, F = True, False
quick = settings(deadline=None, max_examples=60)
number, unit = st.floats(-5, 5), st.floats(0, 1)
token = st.tuples(number, number)
tokens = st.lists(token, min_size=0, max_size=9)


def flat(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def true(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def rows(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)])


def ragged(batch):
    """Rows of (reward, value) pairs → rewards, values, an all-true mask, offsets."""
    pairs = [pair for one in batch for pair in one]
    r, v = flat(*(x for x, _ in pairs)), flat(*(x for _, x in pairs))
    return r, v, true(len(pairs)), rows(*map(len, batch))


def inputs(batch, groups=None, **more):
    r, v, mask, offsets = ragged(batch)
    groups = torch.arange(len(batch)) if groups is None else torch.tensor(groups)
    return AdvantageInputs(r, v, mask, offsets, groups)._replace(**more)
