"""Section 1, items 10, 11 and 13, on whole runs: a critic whose head is a histogram."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from critic_cases import CRITICS, experience_of
from helpers import SilentLog, actors, job, parameters, run, trainer, vowels

from proxlm.config import DataSettings, RewardSettings, ValueSettings, validate
from proxlm.errors import ConfigError
from proxlm.models.value_head import ValueHead
from proxlm.rl.value_ensemble import Ensemble
from proxlm.rl.value_histogram import ValueBins, histogram_loss
from proxlm.train.ppo.critic import value_loss
from proxlm.train.ppo.learner import build_learner
from proxlm.types import Scores

BINS = ValueSettings("categorical", -0.5, 1.5, 21)


def by_prompt(rollout):
    """A score that the prompt decides, so that a critic can come to know it."""
    return Scores(torch.tensor([len(p.text) % 7 / 7 for p in rollout.prompts]))


@pytest.mark.checklist(11)
@pytest.mark.parametrize("critic", CRITICS)
def test_it_starts_at_the_mean_of_the_first_returns(tokenizer, critic):
    """V = 0.99 R̄ + 0.01 · the middle of the range, with R of λ = 1, whatever λ is; the KL is 0 at the start."""
    config = job(critic, value=BINS, lam=0.5, critic_lam=0.9, gamma=0.97)
    experience, metrics, offsets = experience_of(tokenizer, config, head=False)
    lengths = offsets.diff().tolist()
    scores = [float(experience.rewards[a:b].sum()) for a, b in pairwise(offsets.tolist())]
    returns = [s * 0.97**k for s, n in zip(scores, lengths, strict=True) for k in range(n)]
    wanted = 0.99 * sum(returns) / len(returns) + 0.01 * 0.5
    assert 0.02 < wanted < 0.45
    assert torch.allclose(experience.values, torch.full_like(experience.values, wanted), atol=1e-5)
    assert metrics["value_mean"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.checklist(11)
def test_a_head_begins_once_and_at_finite_returns_alone():
    head = ValueHead(8, ValueBins(-2.0, 2.0, 5, sigma=0.0))
    assert head.waits
    head.begin(torch.tensor([math.nan, math.inf]))
    assert head.waits
    assert float(head(torch.randn(4, 8)).detach().abs().max()) < 1e-6  # the middle still
    head.begin(torch.tensor([1.0, math.nan, 0.5, -math.inf]))
    assert not head.waits
    assert head(torch.randn(4, 8)).detach().tolist() == pytest.approx([0.99 * 0.75] * 4)
    assert not ValueHead(8).waits
    several = ValueHead(8, ValueBins(-2.0, 2.0, 5), Ensemble(3))
    assert several.waits
    several.begin(torch.tensor([0.3]))
    by_head = several.linear.bias.detach().view(3, 5)
    assert not several.waits
    assert torch.equal(by_head, by_head[:1].expand(3, 5))
    # Weights that were read from a critic are not new, with or without a bias.
    read = ValueHead(8, ValueBins(-2.0, 2.0, 5))
    torch.nn.init.normal_(read.linear.weight)
    assert not read.waits


@pytest.mark.checklist(11)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_second_step_goes_on_with_what_was_learnt(tokenizer, tmp_path, critic):
    made = trainer(tokenizer, job(critic, value=BINS, lr=1e-4), tmp_path)
    made.step(SilentLog())
    bias = made.models.value_head.linear.bias.detach().clone()
    assert bias.softmax(-1).std() > 0.01
    made.step(SilentLog())
    # Two optimiser steps or so of 1e-4 each: far less than another step's histogram would be off.
    assert 0 < float((made.models.value_head.linear.bias.detach() - bias).abs().max()) < 1e-2


@pytest.mark.checklist(11)
def test_what_the_first_gradient_of_all_states_has_in_common_is_gone():
    """From the uniform histogram it is most of the gradient in the logits; from that of the returns, nothing."""
    returns = torch.linspace(0.1, 0.3, 200)
    states = torch.zeros(200, 16)
    shares = []
    for begun in (False, True):
        head = ValueHead(16, ValueBins(-2.0, 2.0, 41))
        if begun:
            head.begin(returns)
        outputs = head.linear(states).detach().requires_grad_()
        (g,) = torch.autograd.grad(histogram_loss(outputs, returns, head.bins).sum(), outputs)
        shares.append(float(g.mean(0).square().sum() / g.square().sum(-1).mean()))
    assert shares[0] > 0.5
    assert shares[1] < 1e-3


@pytest.mark.checklist(11)
@pytest.mark.parametrize(("value", "times"), [(BINS, 10.0), (replace(BINS, head_rate=3.0), 3.0), (None, 1.0)])
def test_a_categorical_head_learns_at_a_multiple_of_the_rate(tokenizer, value, times):
    config = job("separate", lr=1e-3, **({} if value is None else {"value": value}))
    learner = build_learner(actors(tokenizer, config), config)
    named = dict(learner.models.critic_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.ones_like(p)
    learner.optimisers.critic.step(0, 10)
    # Adam's first step along a gradient of one sign is the rate, whatever the gradient's size (eps apart).
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in named.items()}
    assert moved["head.linear.bias"] == pytest.approx(times * 1e-3, rel=0.05)
    assert moved["head.linear.weight"] == pytest.approx(times * 1e-3, rel=0.05)
    trunk = [x for name, x in moved.items() if name.startswith("trunk.")]
    assert trunk == pytest.approx([1e-3] * len(trunk), rel=0.05)


@pytest.mark.checklist(11)
def test_the_values_of_a_categorical_head_have_the_shape_of_the_states():
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
    assert 1.5 < rows[0]["value_loss"] < math.log(21)
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
