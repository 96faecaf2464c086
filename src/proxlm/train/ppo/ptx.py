"""PPO-ptx: the language-model loss on text, mixed into each optimiser step (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from torch import Tensor

from proxlm.config import PtxSettings
from proxlm.models.language_model import LanguageModel
from proxlm.train.supervised.examples import Examples, TokenBatches
from proxlm.train.supervised.objective import next_token_gradient


class PtxText:
    """Batches of packed text, one per optimiser step of the policy; `used` counts them, for a resume."""

    def __init__(self, blocks: Tensor, config: PtxSettings, micro_batch_tokens: int, seed: int) -> None:
        self.examples = Examples.from_blocks(blocks)
        self.coef, self.micro_batch_tokens = config.coef, micro_batch_tokens
        self.batches = TokenBatches(self.examples.lengths, config.batch_tokens, seed)
        self.used = 0
        self._begun: list[int] = []

    def skip(self, batches: int) -> None:
        """Pass over the batches that a resumed run has used."""
        self.batches.skip(batches)
        self.used += batches

    def backward(self, model: LanguageModel, micro_batch_tokens: int = 0) -> float:
        """Add coef times the gradient of the next batch's mean loss; returns that loss, nats per token.

        A batch whose gradient failed, for want of memory, is the next one again. micro_batch_tokens: the most tokens
        in a pass; 0: as it is set.
        """
        self._begun = self._begun or self.batches.next()
        tokens = micro_batch_tokens or self.micro_batch_tokens
        loss = next_token_gradient(model, self.examples, self._begun, tokens, self.coef)[0]
        self._begun = []
        self.used += 1
        return loss
