"""The critic's first gradient, taken on the pass that reads its values."""

from __future__ import annotations

import pytest
import torch
from helpers import SilentLog, job, parameters, prepared_by, run, trainer, vowels

from proxlm.config import ValueSettings
from proxlm.engine.generate import generate
from proxlm.models.actor_critic import ActorCritic
from proxlm.train.ppo import prepare as prepare_module
from proxlm.train.ppo.update import update

SETTINGS = [
    {},
    {"minibatches": 1},
    {"truncation": "bootstrap", "gamma": 0.9},
    {"critic_lam": 1.0, "lam_length": 0.5, "aggregation": "sequence"},
    {"critic_warmup": 1},
    {"old_logprobs": "rollout", "clip_value": 0.0},
    {"value": ValueSettings(heads=3, combine="lower_bound", head_share=0.5)},
]


def learnt(tokenizer, folder, monkeypatch, apart, **settings):
    """Parameters and metrics after two steps; apart: with a forward pass of its own in the first minibatch."""
    with monkeypatch.context() as patch:
        if apart:
            patch.setattr(prepare_module, "can_learn_while_reading", lambda *_: False)
        made = trainer(tokenizer, job("separate", steps=2, **settings), folder)
        for optimiser in (made.learner.optimisers.policy, made.learner.optimisers.critic):
            for group in optimiser.param_groups:
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


def prepared_first(made):
    rollout = generate(made.engine, made.prompts.batch(0), made.config.rollout, seed=0, step=0)
    return prepared_by(made, rollout, vowels(rollout))


@pytest.mark.parametrize("critic", ["separate", "adapter"])
def test_it_is_a_value_that_leaves_the_parameters_alone(tokenizer, tmp_path, critic):
    """`prepare` leaves `.grad` as it was; the update uses the gradient once, and ends without gradients."""
    made = trainer(tokenizer, job(critic), tmp_path, lora=4 if critic == "adapter" else 0)
    kept = torch.ones_like(made.models.value_head.linear.weight)
    made.models.value_head.linear.weight.grad = kept.clone()
    pending = prepared_first(made).first_gradient
    assert torch.equal(made.models.value_head.linear.weight.grad, kept)
    named = dict(made.models.critic_parameters())
    assert set(pending.gradients) == set(named)
    assert any(bool(gradient.any()) for gradient in pending.gradients.values())
    assert [name for name, p in named.items() if p.grad is not None] == ["head.linear.weight"]
    made.models.value_head.linear.weight.grad = None
    update(made.learner, prepared_first(made))
    assert all(p.grad is None for p in named.values())


def test_a_second_update_from_one_experience_computes_it_again(tokenizer, tmp_path, monkeypatch):
    results = []
    for apart in (False, True):
        with monkeypatch.context() as patch:
            if apart:
                patch.setattr(prepare_module, "can_learn_while_reading", lambda *_: False)
            made = trainer(tokenizer, job("separate"), tmp_path)
            for optimiser in (made.learner.optimisers.policy, made.learner.optimisers.critic):
                for group in optimiser.param_groups:
                    group["eps"] = 1e-3
            prepared = prepared_first(made)
            for _ in range(2):
                update(made.learner, prepared)
            results.append(parameters(made))
    assert all(float((results[0][name] - p).abs().max()) <= 1e-6 for name, p in results[1].items())


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
    """The policy's first pass fails: the critic's gradient is dropped with it, and computed again."""
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
