"""A trunk's training pass without padding: every product and norm sees the batch's real tokens only.

The tokens of all rows stand one after another; only attention has them in rows, padded on the right, where a causal
model cannot see the padding. The last block's queries and everything after them are computed for the states that are
asked for, which are those that predict response tokens. A pass may start behind blocks that never learn, where the
states are known (`Sequences.frozen_states`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from proxlm.kernels.attention import causal_attention
from proxlm.kernels.block_layouts import Block, Rotation, has_layout, layout_of
from proxlm.kernels.fused_ops import scatter_rows
from proxlm.kernels.module_hooks import has_hooks
from proxlm.kernels.padded_row_counts import is_onednn_bfloat16, rounded_row_count
from proxlm.rl.ragged import offsets_of
from proxlm.types import Sequences


def can_run_unpadded(trunk: Any) -> bool:
    """Whether `unpadded_states` can stand in for this trunk's own forward.

    It needs a known layout of blocks, evaluation mode (dropout may be on otherwise), and no hooks or sharded
    parameters, which it would bypass.
    """
    return has_layout(trunk.config) and not trunk.training and not has_hooks(trunk, skip_embeddings=True)


class _Rows(NamedTuple):
    """How attention sees the flat tokens: `number` rows of `longest` cells.

    cell: the place of each token among the cells, [N]; None where every cell has a token.
    """

    number: int
    longest: int
    cell: Tensor | None


def unpadded_states(
    trunk: Any,
    sequences: Sequences,
    index: Tensor,
    activation_checkpointing: bool = False,
    frozen_blocks: int = 0,
) -> Tensor:
    """Run the trunk on ragged sequences.

    Args:
        trunk: A transformers model without its head, of which `can_run_unpadded` is true.
        sequences: The batch; N tokens in all.
        index: Places [W] among the flat tokens whose states are asked for, each once.
        activation_checkpointing: A block keeps its input only, and is computed again in the backward pass.
        frozen_blocks: The pass starts behind so many blocks, at `sequences.frozen_states`; 0: at the tokens.

    Returns:
        The states [W, H].
    """
    wanted, rounded = len(index), is_onednn_bfloat16(next(trunk.parameters()))
    if rounded:
        sequences, index = _with_filler(sequences, index)
    layout, (rows, positions) = layout_of(trunk), _rows_of(sequences, 16 if rounded else 1)
    if frozen_blocks:
        assert sequences.frozen_states is not None
        x = sequences.frozen_states[None].to(layout.embeddings[0].weight.dtype)
    else:
        x = layout.embed(sequences.tokens[None], positions[None])
    rotation = layout.rotation(x, positions[None])
    for i, block in enumerate(layout.blocks[frozen_blocks:], start=frozen_blocks):
        asked = index if i == len(layout.blocks) - 1 else None
        if activation_checkpointing and torch.is_grad_enabled():
            x = checkpoint(
                _run_block, block, x, rotation, rows, asked, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = _run_block(block, x, rotation, rows, asked)
    return layout.final(x)[0][:wanted]


@torch.no_grad()
def states_behind(trunk: Any, sequences: Sequences, blocks: int) -> Tensor:
    """The states of all tokens behind the trunk's first blocks, [N, H]; the arguments are as above."""
    layout, (rows, positions) = layout_of(trunk), _rows_of(sequences)
    x = layout.embed(sequences.tokens[None], positions[None])
    rotation = layout.rotation(x, positions[None])
    for block in layout.blocks[:blocks]:
        x = _run_block(block, x, rotation, rows, None)
    return x[0]


def _with_filler(sequences: Sequences, index: Tensor) -> tuple[Sequences, Tensor]:
    """Further rows, and places in them, so that there are few different numbers of tokens and of places asked for.

    No row sees another one, and nothing is asked of these, so that the others' states and gradients stay.
    """
    tokens, places = len(sequences.tokens), rounded_row_count(len(index)) - len(index)
    more = rounded_row_count(tokens + places) - tokens
    if not more:
        return sequences, index
    longest = int(sequences.lengths.max())
    lengths = [*[longest] * (more // longest), *[more % longest] * (more % longest > 0)]
    states = sequences.frozen_states
    filled = replace(
        sequences,
        tokens=torch.cat([sequences.tokens, sequences.tokens.new_zeros(more)]),
        offsets=offsets_of(torch.cat([sequences.lengths, sequences.lengths.new_tensor(lengths)])),
        prompt_lengths=torch.cat([sequences.prompt_lengths, sequences.prompt_lengths.new_ones(len(lengths))]),
        frozen_states=None
        if states is None
        else torch.cat([states, states.new_zeros(more, states.shape[1])]),
    )
    return filled, torch.cat([index, torch.arange(tokens, tokens + places, device=index.device)])


def _rows_of(sequences: Sequences, multiple: int = 1) -> tuple[_Rows, Tensor]:
    """How attention sees the tokens, padded to a multiple of so many, and the position of each in its row, [N]."""
    row, positions = sequences.row_and_position
    longest = int(sequences.lengths.max())
    if longest * len(sequences) == len(positions):
        return _Rows(len(sequences), longest, None), positions
    longest = -(-longest // multiple) * multiple
    return _Rows(len(sequences), longest, row * longest + positions), positions


def _run_block(block: Block, x: Tensor, rotation: Rotation, rows: _Rows, index: Tensor | None) -> Tensor:
    """x [1, N, H] → [1, N, H], or [1, W, H] of the tokens at `index` [W]."""
    q, k, v = (part[0] for part in block.heads(x, rotation, index))
    attended = _attend(q, k, v, rows, index, block.scale)
    if index is not None:
        x = x.index_select(1, index)
    return block.after_attention(x, attended[None])


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: _Rows, index: Tensor | None, scale: float) -> Tensor:
    """Queries [N or W, Q, D] over the keys and values [N, G, D] of their rows → [N or W, Q · D]."""
    cell = query_cell = rows.cell
    if index is not None:
        query_cell = index if cell is None else cell[index]
    keys, values = (_in_rows(part, cell, rows) for part in (k, v))
    attended = causal_attention(_in_rows(q, query_cell, rows), keys, values, scale).flatten(0, 1)
    return attended if query_cell is None else attended.index_select(0, query_cell)


def _in_rows(x: Tensor, cell: Tensor | None, rows: _Rows) -> Tensor:
    """[n, h, D] → [B, T, h, D]."""
    if cell is not None:
        x = scatter_rows(x, cell, rows.number * rows.longest)
    return x.view(rows.number, rows.longest, *x.shape[1:])
