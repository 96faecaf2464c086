"""Section 1, items 4, 12, 13 and 23, on whole runs: warm-up, explained variance, no critic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from critic_cases import CRITICS, experience_of, future, rollout_of, with_values
from helpers import SilentLog, actors, job, parameters, run, trainer

from proxlm.config import OptimiserSettings, OptimisersSettings, RolloutSettings
from proxlm.rl.advantages import explained_variance
from proxlm.types import Scores

CRITIC_FREE = [
    {"advantage": "reinforce"},
    {"advantage": "reinforce++"},
    {"advantage": "rloo", "samples_per_prompt": 2, "batch_size": 6},
    {"advantage": "grpo", "samples_per_prompt": 2, "batch_size": 6},
]


@pytest.mark.checklist(12)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_policy_is_bit_identical_during_warm_up_and_moves_afterwards(tokenizer, tmp_path, critic):
    made = trainer(tokenizer, job(critic, steps=4, critic_warmup=3), tmp_path)
    policy = {name: p for name, p in parameters(made).items() if not name.startswith("critic.")}
    everything = {n: p.clone() for n, p in made.models.policy.network.state_dict().items()}
    learnt = parameters(made)
    for _ in range(3):
        row = made.step(SilentLog())
        now = parameters(made)
        assert all(torch.equal(now[name], p) for name, p in policy.items())
        assert all(torch.equal(everything[n], p) for n, p in made.models.policy.network.state_dict().items())
        # Nor is a gradient left behind for the policy's first step.
        assert all(p.grad is None or not p.grad.any() for _, p in made.models.policy_parameters())
        assert row["warmup"] == 1.0
        assert row["kl"] == 0.0
        assert not {"policy_loss", "ratio_max", "lr/policy", "grad_norm/policy"} & set(row)
        assert row["value_loss"] > 0
        critics = [name for name in now if name.startswith("critic.")]
        assert any(not torch.equal(now[name], learnt[name]) for name in critics)
        assert critics == ["critic.head.linear.weight", "critic.head.linear.bias"] or critic == "separate"
        learnt = now
    row = made.step(SilentLog())
    assert row["warmup"] == 0.0
    assert row["first_minibatch/ratio_error"] == 0.0
    assert row["lr/policy"] > 0
    now = parameters(made)
    assert any(not torch.equal(now[name], p) for name, p in policy.items())


def by_prompt(rollout):
    """A score that the prompt decides, so that a critic can come to know it."""
    return Scores(torch.tensor([len(p.text) / 10 for p in rollout.prompts]))


@pytest.mark.checklist(12)
@pytest.mark.parametrize(
    ("critic", "tokens", "lr"), [("shared", 1, 0.03), ("separate", 1, 0.03), ("separate", 12, 0.01)]
)
def test_explained_variance_rises_during_warm_up(tokenizer, tmp_path, critic, tokens, lr):
    """A shared critic's warm-up is of its head alone, which tells the prompts apart at their ends."""
    settings = {"batch_size": 18, "epochs": 8, "clip_value": 0.0, "micro_batch_tokens": 4000}
    config = job(critic, steps=6, critic_warmup=6, lr=lr, **settings)
    config = replace(config, rollout=RolloutSettings(max_new_tokens=tokens))
    rows = run(trainer(tokenizer, config, tmp_path, reward=by_prompt))
    seen = [row["explained_variance"] for row in rows]
    assert seen[0] == 0.0
    assert seen[1] > 0.2
    assert seen[-1] > 0.85
    assert rows[-1]["value_loss"] < 0.2 * rows[0]["value_loss"]


@pytest.mark.checklist(12)
def test_warm_up_learns_the_sum_of_the_rewards_to_come(tokenizer):
    plain, _, offsets = experience_of(tokenizer, job())
    warm, _, _ = experience_of(tokenizer, job(critic_lam=0.5), warmup=True)
    assert torch.allclose(warm.returns, future(plain.rewards, offsets), atol=1e-5)
    assert torch.equal(warm.advantages, plain.advantages)
    assert not torch.allclose(plain.returns, warm.returns, atol=1e-3)


@pytest.mark.checklist(4)
@pytest.mark.checklist(12)
def test_warm_up_bootstraps_a_cut_response_where_that_is_set(tokenizer):
    terminal, _, offsets = experience_of(tokenizer, job(), warmup=True)
    booted, _, _ = experience_of(tokenizer, job(truncation="bootstrap"), warmup=True)
    models = actors(tokenizer, job())
    with_values(models)
    cut = torch.tensor([finish == "length" for finish in rollout_of(tokenizer, job(), models).finish])
    assert 0 < int(cut.sum()) < len(cut)
    with torch.no_grad():
        final = models.value_of(models.critic_states(terminal.sequences)[1])
    extra = torch.repeat_interleave(torch.where(cut, final, 0.0), offsets[1:] - offsets[:-1])
    assert torch.allclose(booted.returns - terminal.returns, extra, atol=1e-5)


@pytest.mark.checklist(13)
@pytest.mark.parametrize("critic", CRITICS)
def test_explained_variance_of_a_step_is_exact_over_micro_batches(tokenizer, critic):
    names = ["explained_variance", *(f"explained_variance/quarter_{k}" for k in (1, 2, 3, 4))]
    found = []
    for budget in (1, 60, 10_000):
        experience, metrics, offsets = experience_of(tokenizer, job(critic, micro_batch_tokens=budget))
        found.append([metrics[name] for name in names])
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[2] == pytest.approx(found[0], abs=1e-4)
    error = (experience.returns - experience.values).double()
    exact = 1 - float(error.var(correction=0) / experience.returns.double().var(correction=0))
    assert found[2][0] == pytest.approx(exact)
    # The last quarter by hand: from three quarters of each row on.
    lengths = (offsets[1:] - offsets[:-1]).tolist()
    last = torch.tensor([4 * t // n == 3 for n in lengths for t in range(n)])
    assert found[2][4] == pytest.approx(explained_variance(experience.values, experience.returns, last))


@pytest.mark.checklist(13)
@pytest.mark.parametrize("critic", CRITICS)
def test_every_row_of_a_run_says_how_much_the_critic_explains(tokenizer, tmp_path, critic):
    rows = run(trainer(tokenizer, job(critic), tmp_path))
    assert rows[0]["explained_variance"] == 0.0  # V = 0
    for row in rows[1:]:
        assert math.isfinite(row["explained_variance"])
        assert row["explained_variance"] <= 1.0
        assert {f"explained_variance/quarter_{k}" for k in (1, 2, 3, 4)} <= set(row)


@pytest.mark.checklist(13)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_critic_has_its_own_learning_rate(tokenizer, tmp_path, critic):
    config = replace(
        job(critic, steps=1), optim=OptimisersSettings(OptimiserSettings(lr=1e-3), OptimiserSettings(lr=1e-9))
    )
    made = trainer(tokenizer, config, tmp_path)
    before = parameters(made)
    (row,) = run(made)
    assert (row["lr/policy"], row["lr/critic"]) == pytest.approx((1e-3, 1e-9))
    moved = {name: float((p - before[name]).abs().max()) for name, p in parameters(made).items()}
    assert max(far for name, far in moved.items() if name.startswith("critic.")) < 1e-7
    assert max(far for name, far in moved.items() if not name.startswith("critic.")) > 1e-4


@pytest.mark.checklist(23)
@pytest.mark.parametrize("settings", CRITIC_FREE, ids=lambda s: s["advantage"])
def test_without_a_critic_a_run_has_no_value_loss_and_no_critic_parameters(tokenizer, tmp_path, settings):
    made = trainer(tokenizer, job(steps=2, **settings), tmp_path)
    assert made.models.critic_parameters() == []
    assert made.learner.optimisers.critic is None
    before = parameters(made)
    for row in run(made):
        mentions = {key for key in row if "value" in key or "critic" in key or "explained" in key}
        assert mentions == set()
        assert row["first_minibatch/ratio_error"] == 0.0
    assert any(not torch.equal(before[name], p) for name, p in parameters(made).items())
