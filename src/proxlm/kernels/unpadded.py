"""A trunk's training pass without padding: every product and norm sees the batch's real tokens and no others.

The tokens of all rows stand one after another; only attention has them in rows, padded on the right, where a causal
model cannot see what is padded. The last block's queries and everything behind them are computed for the states that
are asked for, which are those of responses, not of prompts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from proxlm.kernels.attention import causal_attention
from proxlm.kernels.blocks import Block, Family, Turn
from proxlm.kernels.fused import gathered, spread
from proxlm.types import Sequences


class _Rows(NamedTuple):
    """number rows of `longest` cells; the tokens' places among the cells, [N], or None where every cell has one."""

    number: int
    longest: int
    place: Tensor | None


def ragged_states(
    family: Family, sequences: Sequences, wanted: Tensor, activation_checkpointing: bool = False
) -> Tensor:
    """States [W, H] at the places wanted [W] (each once) of the flat tokens.

    With activation checkpointing a block keeps its input only, and is computed again on the way back.
    """
    row, positions = sequences.row_and_position
    longest = int(sequences.lengths.max())
    full = longest * len(sequences) == len(positions)
    rows = _Rows(len(sequences), longest, None if full else row * longest + positions)
    x, turn = family.embed(sequences.tokens[None], positions[None])
    last = len(family.blocks) - 1
    for i, block in enumerate(family.blocks):
        given = (block, x, turn, rows, wanted if i == last else None)
        if activation_checkpointing and torch.is_grad_enabled():
            x = checkpoint(_through, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            x = _through(*given)
    return family.final(x)[0]


def _through(block: Block, x: Tensor, turn: Turn, rows: _Rows, wanted: Tensor | None) -> Tensor:
    """x [1, N, H] → [1, N, H], or [1, W, H] of what is wanted alone."""
    q, k, v = (part[0] for part in block.heads(x, turn, wanted))
    attended = _attend(q, k, v, rows, wanted, block.scale)
    if wanted is not None:
        x = gathered(x[0], wanted)[None]
    return block.after(x, attended[None])


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: _Rows, wanted: Tensor | None, scale: float) -> Tensor:
    """Queries [N or W, Q, D] over keys and values [N, G, D], of its row up to itself → [N or W, Q · D]."""
    place = of_queries = rows.place
    if wanted is not None:
        of_queries = wanted if place is None else place[wanted]
    keys, values = (_in_rows(part, place, rows) for part in (k, v))
    attended = causal_attention(_in_rows(q, of_queries, rows), keys, values, scale).flatten(0, 1)
    return attended if of_queries is None else gathered(attended, of_queries)


def _in_rows(x: Tensor, place: Tensor | None, rows: _Rows) -> Tensor:
    """[n, h, D] → [B, T, h, D]."""
    cells = x if place is None else spread(x, place, rows.number * rows.longest)
    return cells.view(rows.number, rows.longest, *x.shape[1:])
