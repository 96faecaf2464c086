"""Supervised examples as ragged batches, dealt out by a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.data.supervised import SFTExample
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.seeds import derive_seed
from proxlm.types import Sequences, ragged_index


@dataclass(frozen=True)
class Examples:
    """Rows of tokens with a loss on some: prompt, response, and which response tokens count."""

    rows: list[SFTExample]

    @staticmethod
    def from_blocks(blocks: Tensor) -> Examples:
        """Packed text [n, block]: each block predicts all its tokens but the first."""
        every = (True,) * (blocks.shape[1] - 1)
        return Examples([SFTExample(tuple(b[:1]), tuple(b[1:]), every) for b in blocks.tolist()])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Tokens per row, [n] int64."""
        return torch.tensor([len(r.prompt_ids) + len(r.response_ids) for r in self.rows])

    def batch(self, rows: Sequence[int]) -> tuple[Sequences, Tensor]:
        """The given rows as sequences, and their loss mask [R] bool."""
        chosen = [self.rows[i] for i in rows]
        sequences = Sequences.from_lists([r.prompt_ids for r in chosen], [r.response_ids for r in chosen])
        return sequences, torch.tensor([m for r in chosen for m in r.loss_mask], dtype=torch.bool)


class TokenBatches:
    """Batches of about `budget` tokens; each epoch has every row once, in a new order made from (seed, epoch).

    `next` must be called once per step; `skip` replays the order for a resume.
    """

    def __init__(self, examples: Examples, budget: int, seed: int) -> None:
        self.lengths = examples.lengths.tolist()
        self.budget, self.seed, self.epoch = budget, seed, 0
        self.pending: list[list[int]] = []

    def next(self) -> list[int]:
        """Row indices of the next batch: rows are added while they fit the budget, at least one."""
        if not self.pending:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "examples", self.epoch))
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
            self.pending = pack_by_budget(order, self.lengths, self.budget)
            self.epoch += 1
        return self.pending.pop(0)

    def skip(self, batches: int) -> None:
        """Pass over the batches of the steps already done."""
        for _ in range(batches):
            self.next()


def pack_by_budget(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive groups of rows whose total length stays within budget (a longer row stands alone)."""
    groups: list[list[int]] = []
    used = 0
    for row in order:
        if groups and used + lengths[row] <= budget:
            groups[-1].append(row)
            used += lengths[row]
        else:
            groups.append([row])
            used = lengths[row]
    return groups


def supervised_gradient(
    model: LanguageModel, examples: Examples, rows: list[int], micro_batch_tokens: int, factor: float = 1.0
) -> tuple[float, int]:
    """Accumulate `factor` times the gradient of the mean loss of the given rows. Returns (loss, tokens read)."""
    sequences, mask = examples.batch(rows)
    total = max(1, int(mask.sum()))
    loss = 0.0
    offsets = sequences.response_offsets
    for micro in micro_batches(sequences.lengths, micro_batch_tokens):
        part = sequences.select(micro).to(model.device)
        weights = mask[ragged_index(offsets, micro)].to(model.device) / total
        share = -(weights * token_outputs(model, part).logprobs).sum()
        torch.mul(share, factor).backward()
        loss += float(share.detach())
    return loss, len(sequences.tokens)
