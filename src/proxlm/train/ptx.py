"""PPO-ptx: the language-model loss on text, mixed into each optimiser step (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from torch import Tensor

from proxlm.config import PtxConfig
from proxlm.models.language_model import LanguageModel
from proxlm.train.examples import Examples, TokenBatches, supervised_gradient


class PtxText:
    """Batches of packed text, one per optimiser step of the policy; `used` counts them, for a resume."""

    def __init__(self, blocks: Tensor, config: PtxConfig, micro_batch_tokens: int, seed: int) -> None:
        self.examples = Examples.from_blocks(blocks)
        self.coef, self.micro_batch_tokens = config.coef, micro_batch_tokens
        self.batches = TokenBatches(self.examples, config.batch_tokens, seed)
        self.used = 0

    def skip(self, batches: int) -> None:
        """Pass over the batches that a resumed run has used."""
        self.batches.skip(batches)
        self.used += batches

    def backward(self, model: LanguageModel) -> float:
        """Add coef times the gradient of the next batch's mean loss; returns that loss, nats per token."""
        self.used += 1
        return supervised_gradient(
            model, self.examples, self.batches.next(), self.micro_batch_tokens, self.coef
        )[0]
