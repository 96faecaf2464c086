"""PPO-ptx: the language-model loss on text, mixed into each optimiser step (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from torch import Tensor

from proxlm.config import PtxSettings
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.models.language_model import LanguageModel
from proxlm.train.supervised.batches import TokenBatches
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.objective import next_token_gradient


class PtxText:
    """Batches of packed text, one per optimiser step of the policy; `used` counts them, for a resume.

    Args:
        blocks: The text, [n, block] token ids.
        config: The loss's factor and the tokens of a batch.
        micro_batch_tokens: The most tokens in a pass.
        seed: Of the order of the blocks.
    """

    def __init__(self, blocks: Tensor, config: PtxSettings, micro_batch_tokens: int, seed: int) -> None:
        self.examples = Examples.from_blocks(blocks)
        self.coef, self.micro_batch_tokens = config.coef, micro_batch_tokens
        self.batches = TokenBatches(self.examples.lengths, config.batch_tokens, seed)
        self.used = 0
        self._batch: list[int] = []

    def skip(self, batches: int) -> None:
        """Pass over the batches that a resumed run has used."""
        self.batches.skip(batches)
        self.used += batches

    def backward(
        self, model: LanguageModel, micro_batch_tokens: int = 0, ranks: Ranks = ONE_PROCESS
    ) -> float:
        """Add coef times the gradient of the present batch's mean loss; its next one comes after `advance`.

        Args:
            model: The policy.
            micro_batch_tokens: The most tokens in a pass; 0: as it was set.
            ranks: They share the batch's blocks in equally many passes; gradient and loss are the sums over ranks.

        Returns:
            The loss, in nats per token; this rank's summand of it.
        """
        self._batch = self._batch or self.batches.next()
        tokens = micro_batch_tokens or self.micro_batch_tokens
        return next_token_gradient(model, self.examples, self._batch, tokens, self.coef, ranks=ranks)[0]

    def advance(self) -> None:
        """The present batch is used. Until then a failed pass, on out-of-memory, does not lose it."""
        self._batch = []
        self.used += 1
