"""Cases and small helpers of the tests beside it."""

from __future__ import annotations

import itertools

import hypothesis
import torch
from hypothesis import strategies as st

from proxlm.rl.ragged import offsets_of

F64 = torch.float64


def given(*strategies, examples=100):
    """hypothesis.given without a deadline: cores are shared."""

    def decorate(test):
        return hypothesis.settings(deadline=None, max_examples=examples)(hypothesis.given(*strategies)(test))

    return decorate


seeds = st.integers(0, 2**31 - 1)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@st.composite
def ragged(draw, empty_rows=False):
    """A mask [R] and offsets [B+1]; rows may lack a chosen token, and with empty_rows any token at all."""
    lengths = draw(st.lists(st.integers(0 if empty_rows else 1, 6), min_size=1, max_size=5))
    mask = draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    return torch.tensor(mask, dtype=torch.bool), offsets_of(torch.tensor(lengths))


def rows_of(offsets):
    return list(itertools.pairwise(offsets.tolist()))
