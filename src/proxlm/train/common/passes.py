"""Which rows of a batch each rank reads, in which passes: by tokens, and equally many passes on all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.models.forward import micro_batches


class Pass(NamedTuple):
    """The rows of one pass.

    rows: their numbers in the batch [b] int64; weight: 1, or 0 for a pass that is made only because another rank
    makes one: where weights are sharded all ranks must make equally many.
    """

    rows: Tensor
    weight: float = 1.0


def shares(lengths: Tensor, size: int) -> list[Tensor]:
    """Each rank's rows, so that all have about as many tokens: the longest first, to the rank with the fewest.

    Args:
        lengths: Tokens of each row [B].
        size: How many ranks there are.
    """
    if size == 1:
        return [torch.arange(len(lengths))]
    tokens, owner = [0] * size, torch.empty(len(lengths), dtype=torch.int64)
    for i in torch.argsort(lengths, descending=True, stable=True).tolist():
        owner[i] = tokens.index(min(tokens))
        tokens[int(owner[i])] += int(lengths[i])
    return [torch.nonzero(owner == rank)[:, 0] for rank in range(size)]


def passes(lengths: Tensor, budget: int, ranks: Ranks = ONE_PROCESS) -> list[Pass]:
    """This rank's passes over a batch.

    Args:
        lengths: Tokens of each row of the whole batch [B].
        budget: Padded tokens of a pass; see `micro_batches`.
        ranks: The processes that share the batch.
    """
    by_rank = [
        [own[rows] for rows in micro_batches(lengths[own], budget)] for own in shares(lengths, ranks.size)
    ]
    own = [Pass(rows) for rows in by_rank[ranks.rank]]
    missing = max(len(parts) for parts in by_rank) - len(own)
    return own + [Pass(lengths.argmin()[None], 0.0)] * missing
