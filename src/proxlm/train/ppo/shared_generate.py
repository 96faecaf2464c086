"""A rollout that all ranks sample together, each the responses to some of the prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proxlm.config import PPOConfig, RolloutSettings
from proxlm.distributed.ranks import Ranks
from proxlm.engine.generate import Generate, generate
from proxlm.engine.protocol import Engine
from proxlm.seeds import Stream
from proxlm.types import Progress, Prompt, Rollout


def can_be_shared(config: PPOConfig, sampler: Generate) -> bool:
    """Whether ranks can share the sampling: not of conversations and with servers, which belong to rank 0, and not
    beside scoring or an update, whose order of calls would not be that of the others.
    """
    alone = config.ppo.max_staleness or config.reward.overlap or config.engine.use != "native"
    return sampler is generate and not alone


class SharedGenerate:
    """Samples as `generate` does, on all ranks.

    A response depends on its prompt, counters and the weights alone, so it is the one that a single process samples,
    up to the last bits that depend on which rows share a batch.

    Args:
        ranks: Who shares.
        engine: This rank's, on the policy.
    """

    def __init__(self, ranks: Ranks, engine: Engine) -> None:
        self._ranks, self._engine = ranks, engine

    def __call__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        settings: RolloutSettings,
        *,
        seed: int,
        step: int,
        stream: Stream = Stream.TRAINING,
        on_progress: Progress | None = None,
    ) -> Rollout:
        """On rank 0, while the others serve."""
        shares = rows_by_rank(prompts, self._ranks.size)
        given = [[prompts[row] for row in rows] for rows in shares]
        self._ranks.call("generate", engine.version, given, settings, seed, step, stream)
        parts = self._ranks.gather(
            lambda: generate(
                engine, given[0], settings, seed=seed, step=step, stream=stream, on_progress=on_progress
            )
        )
        order = torch.tensor([row for rows in shares for row in rows])
        return Rollout.join([part for part in parts if len(part)]).select(order.argsort())

    def own_share(
        self,
        version: int,
        given: Sequence[Sequence[Prompt]],
        settings: RolloutSettings,
        seed: int,
        step: int,
        stream: Stream,
    ) -> None:
        """On another rank: sample its share, with the weights as they are, and send it to rank 0."""
        own = given[self._ranks.rank]
        self._engine.load_weights((), version)
        self._ranks.gather(lambda: generate(self._engine, own, settings, seed=seed, step=step, stream=stream))


def rows_by_rank(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Which rows each rank samples: all repeats of a prompt on one rank, about equally many tokens on each.

    Repeats stay together, because they are counted to number the random numbers of each.
    """
    repeats: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        repeats.setdefault(prompt.id, []).append(row)
    shares: list[list[int]] = [[] for _ in range(size)]
    read = [0] * size
    for rows in sorted(repeats.values(), key=lambda rows: -sum(len(prompts[row].input_ids) for row in rows)):
        # How long responses become is not known, so the number of rows goes first.
        rank = min(range(size), key=lambda rank: (len(shares[rank]), read[rank]))
        shares[rank] += rows
        read[rank] += sum(len(prompts[row].input_ids) for row in rows)
    return shares
