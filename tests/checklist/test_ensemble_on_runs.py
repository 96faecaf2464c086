"""Section 1, item 44, on whole runs: a critic with several heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from critic_cases import CRITICS, experience_of, rollout_of, with_values
from helpers import SilentLog, actors, job, of_rows, parameters, prepared_by, run, trainer, vowels

from proxlm.config import DataSettings, RewardSettings, ValueSettings, load_config, validate
from proxlm.errors import ConfigError
from proxlm.models.value_head import ValueHead
from proxlm.rl.losses import clipped_value_loss
from proxlm.rl.value_ensemble import Ensemble, combined_value
from proxlm.rl.value_histogram import ValueBins
from proxlm.train.ppo.critic import value_loss
from proxlm.train.ppo.prepare import prepare

BINS = ValueBins(-2.0, 2.0, 5)


def alone(head: ValueHead, k: int) -> ValueHead:
    """One head of several as a critic's only one."""
    per_head = head.linear.out_features // head.ensemble.heads
    single = ValueHead(head.linear.in_features, head.bins)
    with torch.no_grad():
        single.linear.weight.copy_(head.linear.weight[k * per_head : (k + 1) * per_head])
        single.linear.bias.copy_(head.linear.bias[k * per_head : (k + 1) * per_head])
    return single


@pytest.mark.checklist(44)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("combine", ["mean", "min", "lower_bound"])
def test_advantages_and_returns_follow_the_combined_value(tokenizer, critic, combine):
    config = job(critic, value=ValueSettings(heads=3, combine=combine, pessimism=2.0), truncation="bootstrap")
    experience, metrics, _ = experience_of(tokenizer, config)
    assert experience.values_of_heads.shape == (len(experience.values), 3)
    assert torch.equal(experience.values, combined_value(experience.values_of_heads, combine, 2.0))
    assert metrics["value_spread"] > 0.1
    deviation = experience.values_of_heads.double().std(-1, correction=0)
    assert metrics["value_spread"] == pytest.approx(float(deviation.mean()))
    # The same values from one head give the same advantages and returns.
    single = job(critic, truncation="bootstrap")
    models = actors(tokenizer, single)
    if combine == "mean":  # of linear heads the mean is a linear head
        with_values(three := actors(tokenizer, config))
        with torch.no_grad():
            models.value_head.linear.weight.copy_(three.value_head.linear.weight.mean(0))
            models.value_head.linear.bias.copy_(three.value_head.linear.bias.mean(0))
        rollout = rollout_of(tokenizer, single, models)
        one = prepare(models, rollout, vowels(rollout), single).experience
        for name in ("values", "advantages", "returns"):
            assert torch.allclose(getattr(experience, name), getattr(one, name), atol=2e-5), name
        assert one.values_of_heads is None


@pytest.mark.checklist(44)
def test_the_least_of_heads_is_below_their_mean(tokenizer):
    values = {
        combine: experience_of(tokenizer, job(value=ValueSettings(heads=4, combine=combine)))[0].values
        for combine in ("min", "mean")
    }
    assert bool((values["min"] <= values["mean"]).all())
    assert float((values["mean"] - values["min"]).mean()) > 0.1


@pytest.mark.checklist(11)
@pytest.mark.checklist(44)
def test_heads_begin_apart_around_0_and_as_torchs_generator_says():
    def made(heads, bins=None, spread=0.2):
        torch.manual_seed(4)
        return ValueHead(64, bins, Ensemble(heads, "mean", 1.0, spread))

    states = torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
    head = made(5).requires_grad_(False)
    values = head.values(states)
    assert values.shape == (400, 5)
    assert float(head(states).abs().max()) < 1e-6
    assert float(values.std(-1, correction=0).square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)
    assert not head.linear.bias.any()
    assert torch.equal(made(5).linear.weight, head.linear.weight)
    assert not made(5, spread=0.0).linear.weight.any()
    histograms = made(3, BINS).requires_grad_(False)
    assert histograms.values(states).shape == (400, 3)
    assert histograms(states.view(20, 20, 64)).shape == (20, 20)
    # The logits' differences cancel; the values of the histograms' means are then 0 but for second order.
    assert float(histograms.linear.weight.view(3, 5, 64).mean(0).abs().max()) < 1e-7
    assert float(histograms.values(states).std(-1).min()) > 0


@pytest.mark.checklist(44)
def test_one_head_is_the_critic_that_there_was_bit_for_bit():
    """Zeros, no random number beyond those of a linear layer, and loss and gradients of the plain formula."""
    torch.manual_seed(4)
    torch.nn.Linear(16, 1)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    head = ValueHead(16, None, Ensemble(1, "min", 1.0, 0.5))
    assert torch.equal(torch.rand(3), wanted)
    assert not any(p.any() for p in head.parameters())
    torch.nn.init.normal_(head.linear.weight)
    states, old, returns, weights = torch.randn(37, 16), torch.randn(37), torch.randn(37), torch.rand(37)
    models = replace(_no_models(), value_head=head)
    found = _gradients(models, states, old, returns, weights)
    one = states.clone().requires_grad_()
    head.linear.zero_grad()
    values = torch.nn.functional.linear(one, head.linear.weight, head.linear.bias).squeeze(-1)
    assert torch.equal(head(states), values)
    loss = (weights * clipped_value_loss(values, old, returns, 0.2)).sum()
    loss.backward()
    assert float(loss.detach()) == found["loss"]
    assert torch.equal(one.grad, found["states"])
    assert torch.equal(head.linear.weight.grad, found["weight"])
    assert torch.equal(head.linear.bias.grad, found["bias"])


def _no_models():
    from proxlm.models.actor_critic import ActorCritic

    return ActorCritic(policy=None, value_head=None, critic_trunk=None, reference=None)


def _gradients(models, states, old, returns, weights, factors=None, clip=0.2):
    """The value loss of a head on these states, and its gradients."""
    models.value_head.zero_grad()
    leaf = states.clone().requires_grad_()
    loss = value_loss(models, leaf, old, returns, weights, clip, factors)
    loss.backward()
    linear = models.value_head.linear
    return {
        "loss": float(loss.detach()),
        "states": leaf.grad,
        "weight": linear.weight.grad.clone(),
        "bias": linear.bias.grad.clone(),
    }


@pytest.mark.checklist(44)
@pytest.mark.parametrize("bins", [None, BINS])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_each_head_has_the_gradient_that_it_would_have_alone_and_the_trunk_their_mean(bins, share, clip):
    torch.manual_seed(0)
    head = ValueHead(8, bins, Ensemble(3))
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    states, returns, weights = torch.randn(11, 8), torch.randn(11), torch.rand(11)
    old = head.values(states).detach() + 0.5 * torch.randn(11, 3)  # some of each head's tokens are clipped
    factors = (torch.rand(11, 3) < 0.5) * 2.0 if share else None
    found = _gradients(replace(_no_models(), value_head=head), states, old, returns, weights, factors, clip)
    each = [
        _gradients(
            replace(_no_models(), value_head=alone(head, k)),
            states,
            old[:, k],
            returns,
            weights if factors is None else weights * factors[:, k],
            clip=clip,
        )
        for k in range(3)
    ]
    for name in ("weight", "bias"):
        assert torch.allclose(found[name], torch.cat([one[name] for one in each]), rtol=1e-5, atol=1e-6), name
    assert found["loss"] == pytest.approx(sum(one["loss"] for one in each) / 3)
    trunk = sum(one["states"] for one in each) / 3
    assert torch.allclose(found["states"], trunk, rtol=1e-5, atol=1e-6)
    assert float(each[0]["weight"].sub(each[1]["weight"]).abs().max()) > 1e-2


@pytest.mark.checklist(44)
def test_a_head_beyond_the_clip_from_the_others_still_learns():
    """Around the combined value, 0, both branches of its loss would be that of ±0.2, and its gradient 0."""
    head = ValueHead(4, None, Ensemble(2))
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([-1.0, 1.0]))
        head.linear.weight.zero_()
    states, returns, weights = torch.randn(5, 4), torch.full((5,), 3.0), torch.full((5,), 0.2)
    models = replace(_no_models(), value_head=head)
    own = _gradients(models, states, head.values(states).detach(), returns, weights)
    assert own["bias"].tolist() == pytest.approx([-4.0, -2.0])
    combined = head(states).detach()[:, None].expand(5, 2)
    assert _gradients(models, states, combined, returns, weights)["bias"].tolist() == pytest.approx(
        [-4.0, 0.0]
    )


@pytest.mark.checklist(44)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("combine", ["mean", "min"])
def test_heads_that_begin_alike_are_one_head_throughout(tokenizer, tmp_path, critic, combine):
    after = {}
    for heads in (1, 4):
        how = combine if heads > 1 else "mean"
        value = ValueSettings(heads=heads, combine=how, init_spread=0.0, head_share=1.0)
        config = job(critic, value=value, clip_value=0.05)
        optim = replace(config.optim.critic, max_grad_norm=0.0, eps=1e-3)
        config = replace(config, optim=replace(config.optim, critic=optim))
        made = trainer(tokenizer, config, tmp_path / str(heads))
        rows = run(made)
        after[heads] = parameters(made), rows
    (one, rows), (four, others) = after[1], after[4]
    for name, p in one.items():
        # The heads' own weights are the one head's, four times.
        wanted = p.repeat(4, *[1] * (p.ndim - 1)) if name.startswith("critic.head") else p
        assert torch.allclose(four[name], wanted, atol=2e-6), name
    for row, other in zip(rows, others, strict=True):
        assert other["value_spread"] < 1e-6
        for name in ("value_loss", "value_mean", "advantage_std", "explained_variance"):
            assert other.get(name) == pytest.approx(row.get(name), rel=1e-3, abs=1e-6), name


@pytest.mark.checklist(44)
@pytest.mark.parametrize("critic", CRITICS)
def test_micro_batches_and_the_order_of_rows_change_nothing(tokenizer, tmp_path, critic):
    value = ValueSettings(heads=3, combine="lower_bound", head_share=0.5)
    after = []
    for tokens in (4096, 1):
        config = job(critic, value=value, steps=1, epochs=1, minibatches=1, micro_batch_tokens=tokens)
        made = trainer(tokenizer, config, tmp_path)
        row = made.step(SilentLog())
        after.append((row["grad_norm/critic"], row["value_loss"], row["value_spread"]))
    assert after[0] == pytest.approx(after[1], rel=1e-4)
    assert after[0][0] > 0
    prepared = prepared_by(made, *_scored(tokenizer, config, made.models))
    order = torch.arange(len(prepared.experience.sequences)).flip(0)
    turned = of_rows(prepared, order, config).experience
    rows = prepared.experience.head_factors
    offsets = prepared.experience.sequences.response_offsets.tolist()
    assert torch.equal(
        turned.head_factors,
        torch.cat([rows[a:b] for a, b in zip(offsets[-2::-1], offsets[:0:-1], strict=True)]),
    )


def _scored(tokenizer, config, models):
    rollout = rollout_of(tokenizer, config, models)
    return rollout, vowels(rollout)


@pytest.mark.checklist(44)
def test_shares_keep_heads_apart_and_without_them_they_become_one(tokenizer, tmp_path):
    """On the same responses over and over, with a learning rate that fits them."""
    spread = {}
    for share in (1.0, 0.5):
        value = ValueSettings(heads=4, head_share=share, init_spread=0.5)
        config = job("shared", value=value, steps=14, epochs=4, lr=1e-2, critic_warmup=14, clip_value=0.0)
        made = trainer(tokenizer, config, tmp_path / str(share))
        spread[share] = [row["value_spread"] for row in run(made)]
    assert spread[1.0][0] == spread[0.5][0] > 0.2
    assert spread[1.0][-1] < 0.5 * spread[1.0][0]
    assert spread[0.5][-1] > 2 * spread[1.0][-1]


@pytest.mark.checklist(44)
@pytest.mark.parametrize(
    ("critic", "family", "lora", "more"),
    [
        ("adapter", "llama", 4, {}),
        ("separate", "t5", 0, {}),
        ("shared", "bart", 0, {}),
        ("separate", "llama", 0, {"max_staleness": 1}),
        ("shared", "gpt2", 0, {"old_logprobs": "rollout"}),
        ("separate", "llama", 0, {"loss": "trpo", "packed": True}),
        ("separate", "lstm", 0, {"advantage": "vtrace"}),
    ],
)
def test_every_critic_may_have_heads(tokenizer, tmp_path, critic, family, lora, more):
    config = job(critic, value=ValueSettings(heads=3, combine="min", head_share=0.5), **more)
    made = trainer(tokenizer, config, tmp_path, lora, family=family)
    before = parameters(made)
    rows = run(made)
    moved = (parameters(made)["critic.head.linear.weight"] - before["critic.head.linear.weight"]).abs()
    assert moved.shape == (3, made.models.policy.hidden_size)
    assert float(moved.max(-1).values.min()) > 1e-4
    assert all(0 < row["value_spread"] < 10 and row["value_loss"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (ValueSettings(heads=0), "value.heads"),
        (ValueSettings(combine="min"), "model.value.combine.* needs model.value.heads of 2 or more"),
        (ValueSettings(heads=2, head_share=0.0), "value.head_share"),
        (ValueSettings(heads=2, head_share=1.5), "value.head_share"),
        (ValueSettings(heads=2, combine="max"), "value.combine"),
        (ValueSettings(heads=2, pessimism=-1.0), "value.pessimism"),
        (ValueSettings(heads=2, init_spread=-1.0), "value.init_spread"),
    ],
)
def test_wrong_heads_are_refused(value, wrong):
    config = replace(
        job(value=value), data=DataSettings(prompts="p.txt"), reward=RewardSettings(use="length")
    )
    with pytest.raises(ConfigError, match=wrong):
        validate(config)


def test_control_has_one_head_and_says_so():
    with pytest.raises(ConfigError, match=r"model\.value"):
        load_config("control", None, {"environment.id": "CartPole-v1", "model.value.heads": 3})
