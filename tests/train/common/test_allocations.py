"""What a PPO step allocates: logits of a few tokens at a time, never of all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SilentLog, job, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from proxlm.models import forward


class WideTensors(TorchDispatchMode):
    """The number of rows of the tallest tensor that is as wide as the vocabulary, and is no weight."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary, self.hidden, self.rows, self.seen = vocabulary, hidden, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape[-1:]:
                rows = tensor.numel() // self.vocabulary
                if rows != self.hidden:  # the head's weight, turned
                    self.rows, self.seen = max(self.rows, rows), self.seen + 1
        return found


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("more", [{}, {"loss": "gspo"}, {"entropy_coef": 0.01}, {"loss": "trpo"}])
def test_no_tensor_holds_the_logits_of_all_tokens(tokenizer, tmp_path, monkeypatch, critic, more):
    """Rollout, log-probs of policy and reference, and every way back: at most 16 tokens' logits (12 prompts).

    TRPO differentiates twice, with the logits of a micro-batch.
    """
    config = job(critic, steps=1, micro_batch_tokens=60, **more)
    made = trainer(tokenizer, config, tmp_path)
    width, hidden = made.models.policy.network.get_output_embeddings().weight.shape
    monkeypatch.setattr(forward, "LOGIT_BUDGET", 16 * width)
    log = SilentLog()
    with WideTensors(width, hidden) as watched:
        made.train(log)
    tokens = int(log.rows[0]["response_length"] * config.ppo.batch_size)
    assert tokens > 5 * 16
    assert watched.seen > 100
    assert watched.rows <= (60 if more.get("loss") == "trpo" else 16)
