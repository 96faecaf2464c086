"""Which tokens Clip-Cov and KL-Cov treat apart in a step, and what is reported of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import blank_rollout, job, run, trainer

from proxlm.config import CovarianceSettings
from proxlm.train.ppo.covariant_tokens import covariant_tokens


def tokens_of(rollout, logprobs, advantages, seed=0, step=0, **more):
    settings = {"loss": "clip_cov", "covariance": CovarianceSettings(share=0.5, low=-9.0, high=9.0), **more}
    found = covariant_tokens(rollout, logprobs, advantages, job(**settings).ppo, seed, step)
    assert found is not None
    return found


def some_rollout():
    """Six responses of 1 to 6 tokens to prompts 0, 1, 2, 0, 1, 2."""
    rollout = blank_rollout([2, 3, 4, 5, 6, 7])
    prompts = [replace(p, id=i % 3) for i, p in enumerate(rollout.prompts)]
    generator = torch.Generator().manual_seed(0)
    return replace(rollout, prompts=prompts), *(torch.randn(21, generator=generator) for _ in range(2))


@pytest.mark.checklist(19)
@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_the_order_of_rows_and_the_machine_do_not_matter(loss):
    """A row's repeats are numbered in order, so those of one prompt keep theirs here."""
    rollout, logprobs, advantages = some_rollout()
    tokens, metrics = tokens_of(rollout, logprobs, advantages, loss=loss)
    assert int(tokens.sum()) == 10
    assert metrics["covariance/share"] == pytest.approx(10 / 21)
    x, y = logprobs.double(), advantages.double()
    assert metrics["covariance"] == pytest.approx(float((x * y).mean() - x.mean() * y.mean()), abs=1e-6)
    order = torch.tensor([2, 1, 0, 5, 4, 3])
    at = torch.cat([torch.arange(21).split([1, 2, 3, 4, 5, 6])[b] for b in order.tolist()])
    other, _ = tokens_of(rollout.select(order), logprobs[at], advantages[at], loss=loss)
    assert torch.equal(other, tokens[at])


@pytest.mark.checklist(19)
def test_clip_cov_draws_anew_for_each_seed_and_step():
    rollout, logprobs, advantages = some_rollout()
    found = {
        tuple(tokens_of(rollout, logprobs, advantages, seed, step)[0].tolist())
        for seed in range(3)
        for step in range(3)
    }
    assert len(found) == 9
    again = [tokens_of(rollout, logprobs, advantages, 1, 2)[0] for _ in range(2)]
    assert torch.equal(*again)


def test_other_losses_have_none():
    rollout, logprobs, advantages = some_rollout()
    assert covariant_tokens(rollout, logprobs, advantages, job().ppo, 0, 0) is None


@pytest.mark.checklist(19)
@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_a_run_reports_them(tokenizer, tmp_path, loss):
    apart = CovarianceSettings(share=0.25, low=-100.0, high=100.0)
    config = job(steps=2, minibatches=1, loss=loss, covariance=apart)
    rows = run(trainer(tokenizer, config, tmp_path))
    for row in rows:
        assert 0.15 < row["covariance/share"] <= 0.25
        assert isinstance(row["covariance"], float)
        # No PPO clip can bind in the first minibatch: what has no gradient there is what was left out.
        left_out = row["covariance/share"] if loss == "clip_cov" else 0.0
        assert row["first_minibatch/clip_fraction"] == pytest.approx(left_out)


@pytest.mark.checklist(19)
def test_clip_cov_of_no_token_is_ppo(tokenizer, tmp_path):
    of_none = job(steps=2, loss="clip_cov", covariance=CovarianceSettings(share=0.0))
    rows, wanted = (
        run(trainer(tokenizer, config, tmp_path / name))
        for name, config in (("none", of_none), ("ppo", job(steps=2)))
    )
    for row, other in zip(rows, wanted, strict=True):
        assert row["policy_loss"] == other["policy_loss"]
        assert row["reward"] == other["reward"]
