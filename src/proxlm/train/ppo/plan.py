"""The update's plan: which rows make each minibatch, in which micro-batches, with which weight for each token.

It is made once per step, from the whole batch, and passed to `prepare` and `update`: both must run the same forward
passes, or the first ratio would not be exactly 1. On several ranks each one makes the same plan and takes its share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOSettings
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.models.forward import micro_batches
from proxlm.rl.losses import token_weights
from proxlm.rl.ragged import offsets_of, ragged_index
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.passes import shares
from proxlm.types import Experience, Rollout

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass.

    rows [b] int64; tokens [r]: where their response tokens stand in a flat [R] tensor; weights [r]: what each token
    counts in the minibatch's loss; padding: the pass is made only because another rank makes one, and its results
    are dropped (its weights are 0).
    """

    rows: Tensor
    tokens: Tensor
    weights: Tensor
    padding: bool = False


@dataclass(frozen=True)
class Minibatch:
    """The rows of one optimiser step.

    rows: of all ranks; chosen: how many tokens the policy chose in them; micro_batches: this rank's share, as many as
    on every other rank; pass_tokens: the budget of a pass that they were made for.
    """

    rows: Tensor
    chosen: int
    micro_batches: list[MicroBatch]
    pass_tokens: int


class UpdatePlan:
    """The minibatches of every epoch of one step. Make it with `plan_update`.

    Args:
        batch: The step's rollout, or its experience.
        ppo: minibatches and aggregation are used.
        limit: The longest response in tokens.
        seed: Of the run.
        step: The PPO step, from 0.
        budget: The most tokens in a pass. It falls when a pass runs out of memory, and what is planned from then on
            has smaller micro-batches.
        ranks: The processes that share the work.
    """

    def __init__(
        self,
        batch: Rollout | Experience,
        ppo: PPOSettings,
        limit: int,
        seed: int,
        step: int,
        budget: TokenBudget,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.lengths, self.offsets = batch.sequences.lengths, batch.sequences.response_offsets
        self.action_mask, self.limit = batch.action_mask, limit
        self.aggregation, self.minibatches = ppo.aggregation, ppo.minibatches
        self.seed, self.step, self.budget, self.ranks = seed, step, budget, ranks
        self._newest: tuple[tuple[int, int], list[Minibatch]] | None = None

    def epoch(self, epoch: int) -> list[Minibatch]:
        """The minibatches of one pass over the batch.

        Rows are shuffled for each epoch, by a generator seeded with (seed, step, epoch) alone. With fewer rows than
        minibatches there are as many as rows.
        """
        key = epoch, self.budget.tokens
        if self._newest is None or self._newest[0] != key:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, Purpose.PASS, self.step, epoch))
            order = torch.randperm(len(self.lengths), generator=generator)
            parts = torch.tensor_split(order, min(self.minibatches, len(order)))
            self._newest = key, [self.of_rows(rows) for rows in parts]
        return self._newest[1]

    def of_rows(self, rows: Tensor) -> Minibatch:
        """One minibatch of the given rows [b], split into micro-batches of at most the budget's tokens."""
        return self._minibatch(rows, [self._split(share) for share in self._shares(rows)])

    def whole(self) -> Minibatch:
        """All rows in one minibatch, in the micro-batches of the first epoch: those that `prepare` has run."""
        everything = torch.cat([minibatch.rows for minibatch in self.epoch(0)])
        by_rank = [
            [rows for minibatch in self.epoch(0) for rows in self._split(self._shares(minibatch.rows)[rank])]
            for rank in range(self.ranks.size)
        ]
        return self._minibatch(everything, by_rank)

    def current(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch, split again if the budget has fallen since it was planned."""
        return minibatch if minibatch.pass_tokens == self.budget.tokens else self.of_rows(minibatch.rows)

    def weights_of(self, rows: Tensor, mask: Tensor) -> Tensor:
        """What each token in the mask [R] counts in the loss of the minibatch of these rows [b]; the others 0."""
        tokens, lengths = ragged_index(self.offsets, rows), (self.offsets[1:] - self.offsets[:-1])[rows]
        weights = torch.zeros(len(mask))
        weights[tokens] = token_weights(mask[tokens], offsets_of(lengths), self.aggregation, self.limit)
        return weights

    def within_memory(
        self, work: Callable[[], T], rows: Tensor | None = None, clear: Callable[[], None] = lambda: None
    ) -> T:
        """work(), and again with half the budget each time that it runs out of memory.

        Args:
            work: Takes its micro-batches from `epoch` or `current`, which follow the budget. On several ranks its
                passes must run in `failing_together`, so that all retry.
            rows: That it works on [b]; None: all.
            clear: Undoes what a failed `work` has done so far.
        """
        lengths = self.lengths if rows is None else self.lengths[rows]
        return within_memory(self.budget, lambda _: work(), lengths, clear)

    def _minibatch(self, rows: Tensor, by_rank: list[list[Tensor]]) -> Minibatch:
        weights = self.weights_of(rows, self.action_mask)
        own = [self._micro_batch(part, weights) for part in by_rank[self.ranks.rank]]
        missing = max(len(parts) for parts in by_rank) - len(own)
        shortest = rows[self.lengths[rows].argmin()][None]
        own += [self._micro_batch(shortest, torch.zeros_like(weights), padding=True)] * missing
        return Minibatch(
            rows, int(self.action_mask[ragged_index(self.offsets, rows)].sum()), own, self.budget.tokens
        )

    def _micro_batch(self, rows: Tensor, weights: Tensor, padding: bool = False) -> MicroBatch:
        tokens = ragged_index(self.offsets, rows)
        return MicroBatch(rows, tokens, weights[tokens], padding)

    def _split(self, rows: Tensor) -> list[Tensor]:
        return [rows[i] for i in micro_batches(self.lengths[rows], self.budget.tokens)]

    def _shares(self, rows: Tensor) -> list[Tensor]:
        """Each rank's rows."""
        return [rows[own] for own in shares(self.lengths[rows], self.ranks.size)]


def plan_update(
    batch: Rollout | Experience,
    config: PPOConfig,
    step: int = 0,
    budget: TokenBudget | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> UpdatePlan:
    """The plan of a step's update.

    Args:
        batch: The step's rollout, or its experience.
        config: Of the run.
        step: The PPO step, from 0.
        budget: The most tokens in a pass, kept over steps because it falls on out-of-memory; None:
            `ppo.micro_batch_tokens`.
        ranks: The processes that share the work.
    """
    budget = budget or TokenBudget(config.ppo.micro_batch_tokens)
    return UpdatePlan(batch, config.ppo, config.rollout.max_new_tokens, config.run.seed, step, budget, ranks)
