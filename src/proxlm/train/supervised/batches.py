"""Which rows each step learns: by a token budget, short rows first, and in the proportions of a mixture.

Every order is a pure function of the run's seed and of how many batches were drawn; nothing random is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proxlm.config import SupervisedSettings
from proxlm.seeds import Purpose, derive_seed


@dataclass(frozen=True)
class Mixture:
    """Sources of rows and how much of the tokens each gives.

    Attributes:
        names: Of the sources, S.
        source: The number of each row's source, [n] int64.
        shares: Of the tokens that are learnt, S numbers that sum to 1.
    """

    names: tuple[str, ...]
    source: Tensor
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Curriculum:
    """Short rows first: at step t (from 0) the shortest share min(1, start + (1 − start) t / steps) of a source."""

    steps: int
    start: float

    def share(self, step: int) -> float:
        return min(1.0, self.start + (1 - self.start) * step / self.steps)


class Batches(Protocol):
    """Draws the rows of each step."""

    def next(self) -> list[int]:
        """The rows of the next step: as many as fit the budget of tokens, at least one."""

    def skip(self, batches: int) -> None:
        """Pass over the batches of the steps already done."""
        for _ in range(batches):
            self.next()

    def read(self) -> dict[str, float]:
        """How many times the tokens of each source of a mixture have been drawn so far, by its name."""
        return {}


class RowOrder:
    """Rows in an order made from (seed, epoch), again and again; under a curriculum only those that are short enough.

    Once all that are short enough were drawn, a new epoch begins, and so it does when the curriculum ends.

    Args:
        rows: The rows, [m].
        lengths: Their tokens, [m].
        seed: The run's.
        source: The number of their source in a mixture; None: there is none.
        curriculum: Which are drawn at which step.
    """

    def __init__(
        self, rows: Tensor, lengths: Tensor, seed: int, source: int | None, curriculum: Curriculum | None
    ) -> None:
        self.rows, self.seed, self.curriculum, self.epoch = rows, seed, curriculum, 0
        self.counters = () if source is None else (source,)
        self.pending = torch.empty(0, dtype=torch.int64)  # numbers of rows of this epoch
        self._eligible = self.pending
        if curriculum is not None:  # of each row the share of rows that are no longer
            self.rank = torch.empty(len(rows), dtype=torch.float64)
            self.rank[torch.argsort(lengths, stable=True)] = torch.arange(
                len(rows), dtype=torch.float64
            ) / len(rows)

    def eligible(self, step: int) -> Tensor:
        """The rows that may be drawn at a step, in order; one or more."""
        if self.curriculum is not None and step == self.curriculum.steps:
            self.pending = self.pending[:0]
        for _ in range(2):
            chosen = self.pending
            if self.curriculum is not None:
                chosen = chosen[self.rank[chosen] < self.curriculum.share(step)]
            if len(chosen):
                break
            seed = derive_seed(self.seed, Purpose.EXAMPLES, self.epoch, *self.counters)
            self.pending = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
            self.epoch += 1
        self._eligible = chosen
        return self.rows[chosen]

    def remove(self, count: int) -> None:
        """The first rows of what `eligible` gave were drawn."""
        drawn = self._eligible[:count]
        if self.curriculum is None:
            self.pending = self.pending[count:]
        elif count:
            self.pending = self.pending[~torch.isin(self.pending, drawn)]
        self._eligible = self._eligible[count:]


class TokenBatches(Batches):
    """Batches of rows by a token budget; each epoch has every row once, in an order made from (seed, epoch).

    `next` must be called once per step; `skip` replays the order for a resume.

    Args:
        lengths: Tokens of each row, [n].
        budget: Tokens of a batch; a longer row is a batch of its own.
        seed: Of the order.
        curriculum: Short rows first; None: all from the first step on.
    """

    def __init__(self, lengths: Tensor, budget: int, seed: int, curriculum: Curriculum | None = None) -> None:
        self.lengths, self.budget, self.steps = lengths, budget, 0
        self.order = RowOrder(torch.arange(len(lengths)), lengths, seed, None, curriculum)

    def next(self) -> list[int]:
        """Row indices of the next batch: as many rows as fit the budget, at least one."""
        # A row has a token or more, so no more than `budget` of them fit.
        rows = self.order.eligible(self.steps)[: self.budget]
        sizes = self.lengths[rows].cumsum(0)
        count = max(1, int((sizes <= self.budget).sum()))
        self.order.remove(count)
        self.steps += 1
        return rows[:count].tolist()


class MixedBatches(Batches):
    """Batches from several sources: the next row is always of the source that is most behind its share of the tokens.

    So after any number of rows each source's tokens are within one row of its share. A source whose rows were all
    drawn begins again, in another order.

    Args:
        lengths: Tokens of each row, [n].
        budget: Tokens of a batch; a longer row is a batch of its own.
        seed: Of the orders.
        mixture: The sources, each with a row or more, and their shares.
        curriculum: Short rows of each source first; None: all from the first step on.
    """

    def __init__(
        self, lengths: Tensor, budget: int, seed: int, mixture: Mixture, curriculum: Curriculum | None = None
    ) -> None:
        self.lengths, self.budget, self.mixture, self.steps = lengths, budget, mixture, 0
        of_source = [torch.nonzero(mixture.source == i)[:, 0] for i in range(len(mixture.names))]
        self.orders = [RowOrder(rows, lengths[rows], seed, i, curriculum) for i, rows in enumerate(of_source)]
        self.sizes = [int(lengths[rows].sum()) for rows in of_source]
        self.tokens = [0] * len(of_source)

    def next(self) -> list[int]:
        """Row indices of the next batch: as many rows as fit the budget, at least one."""
        pools: list[list[int]] = [[] for _ in self.orders]
        drawn = [0] * len(self.orders)
        batch, size = list[int](), 0
        while True:
            i = min(range(len(pools)), key=lambda i: self.tokens[i] / self.mixture.shares[i])
            if drawn[i] == len(pools[i]):
                self.orders[i].remove(drawn[i])
                # No more than `budget` rows fit: they need not become Python's numbers.
                pools[i] = self.orders[i].eligible(self.steps)[: self.budget].tolist()
                drawn[i] = 0
            row = pools[i][drawn[i]]
            length = int(self.lengths[row])
            if batch and size + length > self.budget:
                break
            batch.append(row)
            size += length
            drawn[i] += 1
            self.tokens[i] += length
        for order, count in zip(self.orders, drawn, strict=True):
            order.remove(count)
        self.steps += 1
        return batch

    def read(self) -> dict[str, float]:
        return {
            name: tokens / size
            for name, tokens, size in zip(self.mixture.names, self.tokens, self.sizes, strict=True)
        }


def batches_of(lengths: Tensor, train: SupervisedSettings, seed: int, mixture: Mixture | None) -> Batches:
    """What draws the rows of a run.

    Args:
        lengths: Tokens of each training row, [n].
        train: The section [train].
        seed: The run's.
        mixture: The sources of the rows; None: there is one.
    """
    curriculum = (
        Curriculum(train.curriculum_steps, train.curriculum_start) if train.curriculum_steps else None
    )
    if mixture is None:
        return TokenBatches(lengths, train.batch_tokens, seed, curriculum)
    return MixedBatches(lengths, train.batch_tokens, seed, mixture, curriculum)
