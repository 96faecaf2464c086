"""Section 1, items 10, 11 and 13, on whole runs: a critic whose head is a histogram."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from critic_cases import CRITICS, experience_of
from helpers import SilentLog, actors, job, parameters, run, trainer, vowels

from proxlm.config import DataSettings, RewardSettings, ValueSettings, validate
from proxlm.errors import ConfigError
from proxlm.models.value_head import ValueHead
from proxlm.rl.value_histogram import ValueBins, histogram_loss
from proxlm.train.ppo.critic import value_loss
from proxlm.types import Scores

BINS = ValueSettings("categorical", -0.5, 1.5, 21)


def by_prompt(rollout):
    """A score that the prompt decides, so that a critic can come to know it."""
    return Scores(torch.tensor([len(p.text) % 7 / 7 for p in rollout.prompts]))


@pytest.mark.checklist(11)
@pytest.mark.parametrize("critic", CRITICS)
def test_it_starts_at_the_middle_of_the_range(tokenizer, critic):
    experience, metrics, _ = experience_of(tokenizer, job(critic, value=BINS), head=False)
    assert torch.allclose(experience.values, torch.full_like(experience.values, 0.5), atol=1e-6)
    assert metrics["value_mean"] == pytest.approx(0.5)
    head = ValueHead(8, ValueBins(-2.0, 2.0, 5))
    assert head(torch.randn(3, 2, 8)).shape == (3, 2)
    assert head(torch.randn(3, 8).bfloat16()).dtype == torch.float32


@pytest.mark.checklist(10)
@pytest.mark.parametrize("critic", CRITICS)
def test_its_loss_is_the_weighted_cross_entropy_of_the_returns_whatever_the_clip(tokenizer, critic):
    models = actors(tokenizer, job(critic, value=BINS))
    states, returns, weights = torch.randn(5, 32), torch.linspace(-1, 2, 5), torch.rand(5)
    torch.nn.init.normal_(models.value_head.linear.weight)
    logits = models.value_head.linear(states)
    wanted = (weights * histogram_loss(logits, returns, ValueBins(-0.5, 1.5, 21))).sum()
    for clip in (0.0, 0.2):
        found = value_loss(models, states, torch.zeros(5), returns, weights, clip)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()))


@pytest.mark.checklist(10)
@pytest.mark.checklist(13)
def test_a_run_learns_what_returns_are(tokenizer, tmp_path):
    config = job("separate", steps=12, lr=3e-3, value=BINS, critic_warmup=12, kl_coef=0.0)
    rows = run(trainer(tokenizer, config, tmp_path, reward=by_prompt))
    assert rows[0]["value_loss"] == pytest.approx(math.log(21), abs=0.5)
    assert rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["value_loss"] < rows[0]["value_loss"] - 0.2
    assert rows[-1]["explained_variance"] > 0.3
    assert abs(rows[-1]["value_bias"]) < 0.1
    assert 0.4 < rows[-1]["value_slope"] < 2.5
    assert all(row["returns_beyond_bins"] == 0.0 for row in rows)


@pytest.mark.checklist(10)
def test_returns_beyond_the_range_are_a_metric(tokenizer, tmp_path):
    narrow = ValueSettings("categorical", 0.1, 0.11, 2)
    made = trainer(tokenizer, job(value=narrow), tmp_path, reward=vowels)
    row = made.step(SilentLog())
    assert row["returns_beyond_bins"] > 0.5
    scalar = trainer(tokenizer, job(), tmp_path).step(SilentLog())
    assert "returns_beyond_bins" not in scalar


@pytest.mark.checklist(13)
def test_calibration_and_advantages_by_quarter_are_those_of_the_experience(tokenizer):
    experience, metrics, _ = experience_of(tokenizer, job(whiten_advantages="never", lam=1.0))
    v, r = experience.values.double(), experience.returns.double()
    cov = ((v - v.mean()) * (r - r.mean())).mean() / (v - v.mean()).square().mean()
    assert metrics["value_slope"] == pytest.approx(float(cov))
    assert metrics["value_bias"] == pytest.approx(float(v.mean() - r.mean()))
    assert metrics["value_bias"] == pytest.approx(-metrics["advantage_mean"], abs=1e-5)
    # The first quarter has each response's first token; none of the other tokens of a short one.
    assert {f"advantage_mean/quarter_{k}" for k in (1, 2)} <= set(metrics)
    zero = experience_of(tokenizer, job(), head=False)[1]
    assert "value_slope" not in zero


@pytest.mark.checklist(10)
def test_micro_batches_and_the_first_gradient_change_nothing(tokenizer, tmp_path):
    """A separate critic takes its first gradient while values are read; a budget of one row splits all passes."""
    after = []
    for tokens in (4096, 1):
        config = job("separate", value=BINS, steps=1, epochs=1, minibatches=1, micro_batch_tokens=tokens)
        made = trainer(tokenizer, config, tmp_path)
        row = made.step(SilentLog())
        after.append((row["grad_norm/critic"], row["value_loss"], parameters(made)))
    assert after[0][:2] == pytest.approx(after[1][:2], rel=1e-4)
    assert after[0][0] > 0


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (ValueSettings("categorical", 1.0, 1.0), "value.low = 1.0: must be less than model.value.high = 1"),
        (ValueSettings("categorical", bins=1), "value.bins"),
        (ValueSettings("categorical", sigma=-1.0), "value.sigma"),
        (ValueSettings("histogram"), "value.head"),
    ],
)
def test_wrong_bins_are_refused(value, wrong):
    config = replace(
        job(value=value), data=DataSettings(prompts="p.txt"), reward=RewardSettings(use="length")
    )
    with pytest.raises(ConfigError, match=wrong):
        validate(config)
