"""Positive examples in a step: which tokens, with which factor, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer
from test_ppo import experience_of

from proxlm.config.model import ModelSettings
from proxlm.config.problems import algorithm_problems
from proxlm.rl.ragged import row_of_element
from proxlm.train.ppo.prepare import positive_tokens
from proxlm.types import Scores


def after(tokenizer, folder, **more):
    made = trainer(tokenizer, job("separate", steps=1, epochs=1, minibatches=1, kl_coef=0.0, **more), folder)
    row = made.step(SilentLog())
    return {n: p for n, p in parameters(made).items() if not n.startswith("critic.")}, row


@pytest.mark.checklist(22)
def test_tokens_are_those_the_policy_chose_in_positive_responses(tokenizer, tmp_path):
    rollout = experience_of(tokenizer, job())[1]
    rollout.action_mask[::3] = False
    count, offsets = len(rollout), rollout.sequences.response_offsets
    total = torch.linspace(-1, 1, count)
    per_token = torch.zeros(len(rollout.action_mask))
    per_token[0] = 2.0  # the first response's reward is −1 + 2
    found = positive_tokens(
        rollout, Scores(total, per_token), job(positive_coef=0.1, positive_threshold=0.5).ppo
    )
    positive = (total >= 0.5) | (torch.arange(count) == 0)
    assert torch.equal(found, positive[row_of_element(offsets)] & rollout.action_mask)
    assert positive_tokens(rollout, Scores(total), job().ppo) is None


@pytest.mark.checklist(22)
def test_where_all_are_positive_a_step_is_that_of_advantages_plus_the_factor(tokenizer, tmp_path):
    """−A ℓ − μ ℓ = −(A + μ) ℓ for the plain policy gradient, with one weight for all tokens."""
    plain, row = after(tokenizer, tmp_path, loss="pg", positive_coef=0.3, positive_threshold=-9.0)
    assert row["positive_share"] == 1.0
    assert row["positive_loss"] == pytest.approx(row["entropy"], rel=0.5)

    made = trainer(
        tokenizer, job("separate", steps=1, epochs=1, minibatches=1, kl_coef=0.0, loss="pg"), tmp_path / "b"
    )
    real = made.learner.algorithm.loss

    def shifted(inputs):
        return real(replace(inputs, advantages=inputs.advantages + 0.3))

    made.learner = replace(made.learner, algorithm=replace(made.learner.algorithm, loss=shifted))
    made.step(SilentLog())
    for name, wanted in parameters(made).items():
        if not name.startswith("critic."):
            assert torch.allclose(plain[name], wanted, atol=1e-6), name


@pytest.mark.checklist(22)
def test_without_a_positive_response_nothing_is_added(tokenizer, tmp_path):
    found, row = after(tokenizer, tmp_path / "a", positive_coef=5.0, positive_threshold=9.0)
    wanted, _ = after(tokenizer, tmp_path / "b")
    assert (row["positive_share"], row["positive_loss"]) == (0.0, 0.0)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_refused():
    def keys(**more):
        return [key for key, _ in algorithm_problems(job(**more).ppo, ModelSettings())]

    assert "ppo.positive_coef" in keys(loss="trpo", positive_coef=0.1)
    assert "ppo.samples_per_prompt" in keys(positive="best", positive_coef=0.1)
    assert keys(positive="best", positive_coef=0.1, samples_per_prompt=2) == []
