"""What a PPO step allocates: logits of a few tokens at a time, never of all of them."""

from __future__ import annotations

import pytest
from helpers import SilentLog, job, trainer
from wide_tensors import WideTensors

from proxlm.models import forward


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
