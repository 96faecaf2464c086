"""ppo.old_logprobs = "rollout": the log-probs that responses were sampled with are π_old."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer, vowels

from proxlm.config import RolloutSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.doctor.facts import facts_of
from proxlm.doctor.rules_run import rollout_gap
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.models.actor_critic import ActorCritic
from proxlm.train.ppo.prepare import prepare

CRITICS = ["shared", "separate"]


def prepared(tokenizer, config, rollout=None):
    models = actors(tokenizer, config)
    if rollout is None:
        prompts = trainer(tokenizer, config, None).prompts.batch(0)  # type: ignore[arg-type]
        rollout = generate(
            NativeEngine(models.policy, config.rollout), prompts, config.rollout, seed=0, step=0
        )
    found = prepare(models, rollout, vowels(rollout), config)
    return rollout, found.experience, found.metrics


@pytest.mark.checklist(15)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_step_learns_what_it_learns_with_log_probs_computed_again(tokenizer, tmp_path, critic):
    rows, learnt = [], []
    for source in ("recomputed", "rollout"):
        made = trainer(tokenizer, job(critic, steps=1, old_logprobs=source), tmp_path / source)
        for optimiser in (made.learner.optimisers.policy, made.learner.optimisers.critic):
            for group in optimiser.param_groups:
                group["eps"] = 1.0  # or its sign-like first steps would blow rounding up
        before = parameters(made)
        rows.append(made.step(SilentLog()))
        learnt.append({name: p - before[name] for name, p in parameters(made).items()})
    for name, moved in learnt[0].items():
        rounding = 2**-22 * float(before[name].abs().max())
        assert float((learnt[1][name] - moved).abs().max()) <= 1e-3 * float(moved.abs().max()) + rounding, (
            name
        )
    assert max(float(moved.abs().max()) for moved in learnt[0].values()) > 1e-5
    again, known = rows
    assert again["first_minibatch/ratio_error"] == 0.0 < known["first_minibatch/ratio_error"] < 1e-5
    assert {"rollout_gap", "rollout_kl"} <= set(again)
    assert not {"rollout_gap", "rollout_kl"} & set(known)  # nothing there to compare with
    assert known["reward"] == again["reward"]
    assert known["kl"] == pytest.approx(again["kl"], abs=1e-4)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_policys_head_is_not_run_before_the_update(tokenizer, monkeypatch, critic):
    rollout, again, _ = prepared(tokenizer, job(critic))

    def refuse(*_, **__):
        raise AssertionError("a pass that the setting spares")

    monkeypatch.setattr(ActorCritic, "policy_outputs", refuse)
    _, known, metrics = prepared(tokenizer, job(critic, old_logprobs="rollout"), rollout)
    assert torch.equal(known.old_logprobs, rollout.logprobs)
    assert torch.equal(known.ref_logprobs, again.ref_logprobs)
    assert torch.equal(known.values, again.values)
    assert torch.equal(known.correction, torch.ones_like(known.correction))
    assert torch.allclose(known.advantages, again.advantages, atol=1e-4)
    # −log π of sampled tokens has the entropy as its mean.
    assert metrics["entropy"] == pytest.approx(-float(rollout.logprobs.mean()), abs=1e-6)


def test_words_of_an_environment_have_no_kl(tokenizer):
    config = job("separate", old_logprobs="rollout")
    rollout, _, _ = prepared(tokenizer, config)
    mask = rollout.action_mask.clone()
    mask[1::3] = False
    said = replace(rollout, action_mask=mask, logprobs=torch.where(mask, rollout.logprobs, 0.0))
    _, experience, metrics = prepared(tokenizer, config, said)
    assert torch.equal(experience.old_logprobs[~mask], experience.ref_logprobs[~mask])
    assert torch.equal(experience.old_logprobs[mask], rollout.logprobs[mask])
    assert metrics["entropy"] == pytest.approx(-float(rollout.logprobs[mask].mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("key", "rollout", "ppo"),
    [
        ("rollout.keep_sampling_mask", {"top_k": 5, "keep_sampling_mask": False}, {}),
        ("rollout.keep_sampling_mask", {"top_p": 0.9, "keep_sampling_mask": False}, {}),
        ("rollout.keep_sampling_mask", {"min_p": 0.1, "keep_sampling_mask": False}, {}),
        (
            "rollout.weights",
            {"weights": "int8"},
            {"engine_correction": CorrectionSettings(mode="token_truncate")},
        ),
        (
            "ppo.max_staleness",
            {},
            {"max_staleness": 1, "staleness_correction": CorrectionSettings(mode="token_truncate")},
        ),
        ("ppo.engine_correction.mode", {}, {"engine_correction": CorrectionSettings(mode="token_mask")}),
        ("ppo.staleness_correction.mode", {}, {"staleness_correction": CorrectionSettings(mode="sequence")}),
    ],
)
def test_it_is_refused_where_another_policy_samples(key, rollout, ppo):
    found = dict(replace(job(**ppo, old_logprobs="rollout"), rollout=RolloutSettings(**rollout)).problems())
    assert key in found["ppo.old_logprobs"]
    assert "ppo.old_logprobs" not in dict(replace(job(**ppo), rollout=RolloutSettings(**rollout)).problems())
    assert "ppo.old_logprobs" not in dict(job(old_logprobs="rollout").problems())
    kept = replace(job(old_logprobs="rollout"), rollout=RolloutSettings(top_p=0.9))
    assert "ppo.old_logprobs" not in dict(kept.problems())


def test_the_doctor_sees_a_gap_in_the_first_ratio():
    facts = facts_of(job(old_logprobs="rollout"))
    found = [
        rollout_gap([{"step": i, "first_minibatch/ratio_error": error} for i in range(1, 4)], facts)
        for error in (1e-6, 2.0)
    ]
    assert found[0] is None
    assert found[1] is not None
    assert found[1].severity == "serious"
