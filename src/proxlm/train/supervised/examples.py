"""Supervised examples as ragged rows, and batches of them by a token budget."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxlm.data.on_disk import NumbersOnDisk
from proxlm.data.supervised import SFTExample
from proxlm.errors import DataError
from proxlm.rl.ragged import offsets_of
from proxlm.seeds import Purpose, derive_seed
from proxlm.types import Sequences


@dataclass(frozen=True)
class Examples:
    """n rows of tokens with a loss on some: prompt, response, and which tokens count.

    tokens [N] int32 and counted [N] bool hold the rows one after another and may be pages of a file; starts, lengths
    and prompt_lengths [n] int64 say where each row is. No token of a prompt counts.
    """

    tokens: Tensor
    counted: Tensor
    starts: Tensor
    lengths: Tensor
    prompt_lengths: Tensor

    @staticmethod
    def from_rows(rows: Iterable[SFTExample | None]) -> Examples:
        """The rows, kept on disk; None becomes a row of length 0, which `select` omits."""
        tokens, counted = NumbersOnDisk(torch.int32), NumbersOnDisk(torch.bool)
        lengths, prompt_lengths = array("q"), array("q")
        for row in rows:
            before = len(tokens)
            if row is not None:
                tokens.extend(row.prompt_ids)
                tokens.extend(row.response_ids)
                counted.extend((False,) * len(row.prompt_ids))
                counted.extend(row.loss_mask)
            lengths.append(len(tokens) - before)
            prompt_lengths.append(0 if row is None else len(row.prompt_ids))
        ends = torch.tensor(lengths).cumsum(0)
        return Examples(
            tokens.tensor(),
            counted.tensor(),
            ends - torch.tensor(lengths),
            torch.tensor(lengths),
            torch.tensor(prompt_lengths),
        )

    @staticmethod
    def from_blocks(blocks: Tensor) -> Examples:
        """Packed text [n, block]: each block predicts all its tokens except the first."""
        count, block = blocks.shape
        return Examples(
            blocks.flatten(),
            torch.ones(1, dtype=torch.bool).expand(blocks.numel()),
            torch.arange(count) * block,
            torch.tensor([block]).expand(count),
            torch.ones(1, dtype=torch.int64).expand(count),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Iterable[int]) -> Examples:
        """The given rows except those of length 0. Raises DataError if none is left."""
        chosen = torch.tensor(list(rows), dtype=torch.int64)
        chosen = chosen[self.lengths[chosen] > 0]
        if not len(chosen):
            raise DataError("no record that can be used is left for training or for validation")
        return Examples(
            self.tokens,
            self.counted,
            self.starts[chosen],
            self.lengths[chosen],
            self.prompt_lengths[chosen],
        )

    def rows_without(self, others: Examples) -> list[int]:
        """The rows that are not, token for token, also rows of `others`."""
        known = {(tokens.tobytes(), prompt) for tokens, prompt in others._rows()}
        return [
            i for i, (tokens, prompt) in enumerate(self._rows()) if (tokens.tobytes(), prompt) not in known
        ]

    def _rows(self) -> Iterator[tuple[Any, int]]:
        """Each row's tokens as an array, and how many of them are the prompt."""
        tokens = self.tokens.numpy()
        for start, length, prompt in zip(self.starts, self.lengths, self.prompt_lengths, strict=True):
            yield tokens[start : start + length], int(prompt)

    def batch(self, rows: Sequence[int]) -> tuple[Sequences, Tensor]:
        """The given rows as sequences, and their loss mask [R] bool."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        starts, lengths, prompts = self.starts[chosen], self.lengths[chosen], self.prompt_lengths[chosen]
        spans = list(
            zip(starts.tolist(), (starts + prompts).tolist(), (starts + lengths).tolist(), strict=True)
        )
        tokens = torch.cat([self.tokens[start:end] for start, _, end in spans]).long()
        mask = torch.cat([self.counted[middle:end] for _, middle, end in spans])
        return Sequences(tokens, offsets_of(lengths), prompts), mask


class TokenBatches:
    """Batches of rows by a token budget; each epoch has every row once, in an order made from (seed, epoch).

    `next` must be called once per step; `skip` replays the order for a resume.

    Args:
        lengths: Tokens of each row, [n].
        budget: Tokens of a batch; a longer row is a batch of its own.
        seed: Of the order.
    """

    def __init__(self, lengths: Tensor, budget: int, seed: int) -> None:
        self.lengths = lengths
        self.budget, self.seed, self.epoch = budget, seed, 0
        self.pending = torch.empty(0, dtype=torch.int64)  # rows of this epoch

    def next(self) -> list[int]:
        """Row indices of the next batch: as many rows as fit the budget, at least one."""
        if not len(self.pending):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, Purpose.EXAMPLES, self.epoch))
            self.pending = torch.randperm(len(self.lengths), generator=generator)
            self.epoch += 1
        # A row has a token or more, so no more than `budget` of them fit.
        sizes = self.lengths[self.pending[: self.budget]].cumsum(0)
        count = max(1, int((sizes <= self.budget).sum()))
        batch, self.pending = self.pending[:count], self.pending[count:]
        return batch.tolist()

    def skip(self, batches: int) -> None:
        """Skip the batches of the steps already done."""
        for _ in range(batches):
            self.next()
