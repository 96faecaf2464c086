"""The critic's first gradient, taken on the pass that reads its values."""

from __future__ import annotations

import pytest
import torch
from helpers import SilentLog, job, parameters, run, trainer

from proxlm.models.actor_critic import ActorCritic
from proxlm.train.ppo import trainer as ppo_module

SETTINGS = [
    {},
    {"minibatches": 1},
    {"truncation": "bootstrap", "gamma": 0.9},
    {"critic_lam": 1.0, "lam_length": 0.5, "aggregation": "sequence"},
    {"critic_warmup": 1},
    {"old_logprobs": "rollout", "clip_value": 0.0},
]


def learnt(tokenizer, folder, monkeypatch, apart, **settings):
    """Parameters and metrics after two steps; apart: with a forward pass of its own in the first minibatch."""
    with monkeypatch.context() as patch:
        if apart:
            patch.setattr(ppo_module.PPOTrainer, "_critics_first", lambda *_: None)
        made = trainer(tokenizer, job("separate", steps=2, **settings), folder)
        for optimiser in (made.learner.optimisers.policy, made.learner.optimisers.critic):
            for group in optimiser.adamw.param_groups:
                group["eps"] = 1e-3  # or its sign-like first steps would blow rounding up
        torch.manual_seed(3)
        torch.nn.init.normal_(made.models.value_head.linear.weight, std=0.3)
        rows = run(made)
        return parameters(made), rows


@pytest.mark.checklist(10)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_learns_the_same(tokenizer, tmp_path, monkeypatch, settings):
    one, rows = learnt(tokenizer, tmp_path / "a", monkeypatch, apart=False, **settings)
    other, wanted = learnt(tokenizer, tmp_path / "b", monkeypatch, apart=True, **settings)
    for name, p in one.items():
        assert float((p - other[name]).abs().max()) <= 1e-6 * max(1.0, float(p.abs().max())), name
    for row, expected in zip(rows, wanted, strict=True):
        for name in ("value_loss", "grad_norm/critic", "explained_variance", "return_mean"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def passes(monkeypatch, made):
    """How many micro-batches the critic's trunk reads in a step, and whether each is for learning."""
    found, real = [], ActorCritic.critic_states

    def counted(self, sequences):
        found.append(torch.is_grad_enabled())
        return real(self, sequences)

    monkeypatch.setattr(ActorCritic, "critic_states", counted)
    made.step(SilentLog())
    return found


def test_the_first_minibatch_is_read_once(tokenizer, tmp_path, monkeypatch):
    """2 epochs of 3 minibatches, each one micro-batch: 3 + 6 passes, less the one that is spared."""
    made = trainer(tokenizer, job("separate", micro_batch_tokens=4000), tmp_path)
    assert passes(monkeypatch, made) == [True, False, False, *[True] * 5]


@pytest.mark.parametrize(
    "settings", [{"loss": "trpo"}, {"advantage": "mine.py:advantage"}], ids=["trpo", "user's advantage"]
)
def test_where_it_cannot_be_it_is_not(tokenizer, tmp_path, monkeypatch, settings):
    file = tmp_path / "mine.py"
    file.write_text("def advantage(x):\n    return x.rewards - x.rewards.mean()\n")
    settings = {name: value.replace("mine.py", str(file)) for name, value in settings.items()}
    made = trainer(tokenizer, job("separate", micro_batch_tokens=4000, **settings), tmp_path)
    assert passes(monkeypatch, made) == [*[False] * 3, *[True] * 6]


def test_out_of_memory_takes_it_back(tokenizer, tmp_path, monkeypatch):
    """Memory ends in the second micro-batch of the pass for values: the first one's gradient is not counted twice."""
    config = job("separate", steps=1, minibatches=1, epochs=1, micro_batch_tokens=100)
    whole = trainer(tokenizer, config, tmp_path / "whole")
    whole.step(SilentLog())
    made, real, calls = trainer(tokenizer, config, tmp_path / "made"), ActorCritic.critic_states, []

    def fails_once(self, sequences):
        calls.append(len(sequences))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("full")
        return real(self, sequences)

    monkeypatch.setattr(ActorCritic, "critic_states", fails_once)
    row = made.step(SilentLog())
    one, two = parameters(whole), parameters(made)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert row["first_minibatch/ratio_error"] == 0.0


def test_out_of_memory_in_the_update_computes_it_again(tokenizer, tmp_path, monkeypatch):
    """The policy's pass of the first minibatch fails: the critic's gradient is dropped with it, and made anew."""
    from proxlm.train.ppo import update

    config = job("separate", steps=1, minibatches=1, epochs=1, micro_batch_tokens=100)
    whole = trainer(tokenizer, config, tmp_path / "whole")
    expected = whole.step(SilentLog())
    made, real, calls = trainer(tokenizer, config, tmp_path / "made"), update.response_states, []

    def fails_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("full")
        return real(*given)

    monkeypatch.setattr(update, "response_states", fails_once)
    row = made.step(SilentLog())
    one, two = parameters(whole), parameters(made)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert row["value_loss"] == pytest.approx(expected["value_loss"], rel=1e-5)


def test_a_shared_trunk_has_no_pass_of_its_own(tokenizer, tmp_path, monkeypatch):
    made = trainer(tokenizer, job("shared", micro_batch_tokens=4000), tmp_path)
    assert passes(monkeypatch, made) == []
