"""Every rule on a short real run that has the illness, and one healthy run on which all are silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from helpers import SilentLog, job, trainer, vowels
from ill_runs import (
    biased_critic,
    constant,
    cut_is_good,
    huge,
    likely_eos,
    long_is_good,
    longer,
    run,
    said_live,
    saying_it_again_is_good,
    separate,
    short_is_good,
    wild_critic,
    with_optim,
)

from proxlm.config import CorrectionSettings, EvaluationSettings, OptimiserSettings, RewardSettings
from proxlm.data.turn_end import TurnEnd
from proxlm.doctor import RULES, Doctor, facts_of
from proxlm.engine import scheduler
from proxlm.models.language_model import LanguageModel
from proxlm.rewards import build_reward


def test_a_healthy_run_has_no_findings(tokenizer, tmp_path):
    config = separate(40, 1.5e-3, batch_size=48, minibatches=2, kl_coef=0.1)
    findings, rows = run(tokenizer, tmp_path, config)
    first, last = ([r["reward"] for r in part] for part in (rows[:5], rows[-5:]))
    assert min(last) > max(first)  # it does learn
    assert findings == {}
    assert said_live(rows, config) == []


def test_learning_rate_too_large_and_what_follows(tokenizer, tmp_path):
    findings, rows = run(tokenizer, tmp_path, separate(12, 1e-1, kl_coef=0.0))
    found = findings["learning_rate_too_large"]
    assert (found.severity, found.step) == ("serious", 3)
    assert "optim.policy.lr (now 0.1)" in found.advice[0]
    assert findings["kl_blow_up"].severity == "serious"
    assert median(r["kl_per_token"] for r in rows[-3:]) > 1
    assert "clip_often" in findings


def test_kl_blow_up(tokenizer, tmp_path):
    findings, rows = run(tokenizer, tmp_path, separate(10, 2e-2, kl_coef=0.0))
    found = findings["kl_blow_up"]
    assert max(r["kl_per_token"] for r in rows) > 1
    assert "nats per token" in found.seen
    assert "ppo.kl_coef (now 0)" in found.advice[0]


def test_learning_rate_too_small(tokenizer, tmp_path):
    config = separate(12, 1e-9)
    findings, rows = run(tokenizer, tmp_path, config)
    assert list(findings) == ["learning_rate_too_small"]
    assert findings["learning_rate_too_small"].step == 10
    assert said_live(rows, config) == [(10, "learning_rate_too_small")]


def test_one_optimiser_step_that_moves_nothing(tokenizer, tmp_path):
    """The ratio of a rollout's only optimiser step is 1, so approx KL and the clip say nothing."""
    findings, rows = run(tokenizer, tmp_path, separate(20, 1e-9, epochs=1, minibatches=1))
    assert {r["clip_fraction"] for r in rows} == {0.0}
    assert findings["learning_rate_too_small"].step == 20
    assert "clip_never" not in findings
    findings, rows = run(tokenizer, tmp_path / "other", separate(20, 3e-3, epochs=1, minibatches=1))
    assert {r["clip_fraction"] for r in rows} == {0.0}
    assert not {"learning_rate_too_small", "clip_never"} & set(findings)


def test_clip_never(tokenizer, tmp_path):
    findings, rows = run(tokenizer, tmp_path, separate(12, 5e-5))
    assert sum(r["approx_kl"] for r in rows) > 0
    assert list(findings) == ["clip_never"]


def test_small_steps_at_the_end_of_a_schedule_are_meant(tokenizer, tmp_path):
    decay = OptimiserSettings(lr=3e-3, schedule="exponential", final=1e-9)
    config = with_optim(separate(24, 3e-3), decay, OptimiserSettings(lr=3e-3))
    findings, rows = run(tokenizer, tmp_path, config)
    assert max(r["approx_kl"] for r in rows[-10:]) < 1e-6
    assert not {"learning_rate_too_small", "clip_never"} & set(findings)


def test_entropy_collapse_and_repetition(tokenizer, tmp_path):
    config = separate(24, 5e-3, kl_coef=0.0)
    findings, rows = run(tokenizer, tmp_path, config, saying_it_again_is_good)
    assert rows[-1]["entropy"] < 0.3
    assert "nats per token" in findings["entropy_collapse"].seen
    assert "ppo.entropy_coef (now 0)" in findings["entropy_collapse"].advice[0]
    found = findings["repetition"]
    assert found.severity == "serious"
    assert median(r["repetition"] for r in rows[-5:]) > 0.6
    assert "while the reward rose" in found.seen


def test_reward_without_variance(tokenizer, tmp_path):
    findings, _ = run(tokenizer, tmp_path, job(steps=6), constant)
    found = findings["reward_without_variance"]
    assert (found.severity, found.step) == ("serious", 5)
    assert "every response gets the same reward, 1.00, in steps 2–6" in found.seen


def test_length_hacking_upwards(tokenizer, tmp_path):
    config = longer(separate(14, 5e-3, kl_coef=0.0), 24)
    findings, rows = run(tokenizer, tmp_path, config, long_is_good, likely_eos(6))
    assert median(r["reward_length_correlation"] for r in rows[:3]) > 0.99
    assert "responses grew longer" in findings["length_hacking"].seen


def test_length_hacking_downwards_until_responses_end_at_once(tokenizer, tmp_path):
    config = longer(separate(20, 5e-3, kl_coef=0.0), 24)
    findings, rows = run(tokenizer, tmp_path, config, short_is_good, likely_eos(4))
    assert rows[0]["response_length"] > 10 > 2 > rows[-1]["response_length"]
    assert findings["length_hacking"].severity == "serious"
    assert "responses grew shorter" in findings["length_hacking"].seen
    assert findings["eos_at_once"].severity == "serious"


def test_eos_at_once_from_the_start(tokenizer, tmp_path):
    findings, _ = run(tokenizer, tmp_path, separate(5, 1e-9), edit=likely_eos(60))
    assert findings["eos_at_once"].severity == "warning"


def test_eos_never_because_the_end_is_not_known(tokenizer, tmp_path, monkeypatch):
    """No token is taken for the end, as with a model whose chat template ends with another one than EOS."""
    monkeypatch.setattr(LanguageModel, "turn_end", TurnEnd(frozenset(), None, 0))
    config = separate(5, 1e-3)
    chat = replace(config, data=replace(config.data, chat=True))
    findings, _ = run(tokenizer, tmp_path, chat)
    assert findings["eos_never"].severity == "warning"
    assert "none did before: all are cut at the limit of 12 tokens" in findings["eos_never"].seen
    findings, _ = run(tokenizer, tmp_path / "text", config)  # a text that is continued need not end
    assert "eos_never" not in findings


def test_eos_lost(tokenizer, tmp_path):
    config = separate(20, 5e-3, kl_coef=0.0)
    chat = replace(config, data=replace(config.data, chat=True))
    findings, rows = run(tokenizer, tmp_path, chat, cut_is_good, likely_eos(4.5))
    assert rows[0]["ended_share"] > 0.1
    assert findings["eos_never"].severity == "serious"
    assert "did in the first steps" in findings["eos_never"].seen


@pytest.mark.parametrize("edit", [wild_critic, biased_critic])
def test_critic_worse_than_the_mean(tokenizer, tmp_path, edit):
    config = with_optim(separate(20, 1e-3), OptimiserSettings(lr=1e-3), OptimiserSettings(lr=1e-12))
    findings, rows = run(tokenizer, tmp_path, config, edit=edit)
    found = findings["critic_worse_than_mean"]
    assert (found.severity, found.step) == ("serious", 20)
    if edit is biased_critic:  # explained variance does not see an error that is the same everywhere
        assert abs(median(r["explained_variance"] for r in rows)) < 0.1


def test_reward_falls(tokenizer, tmp_path):
    """An entropy bonus that is worth more than the reward."""
    config = separate(24, 1e-3, minibatches=2, entropy_coef=1.0)
    findings, rows = run(tokenizer, tmp_path, config, saying_it_again_is_good)
    assert min(r["reward"] for r in rows[:5]) > 3 * median(r["reward"] for r in rows[-10:])
    assert "the reward fell from" in findings["reward_falls"].seen
    assert "lower ppo.entropy_coef (now 1)" in findings["reward_falls"].advice
    # By its own measure, reward − β · KL, the run has lost too.
    assert "the KL penalty costs" in findings["kl_blow_up"].seen


@pytest.mark.parametrize(("error", "severity"), [(0.01, "warning"), (0.5, "serious")])
def test_rollout_gap(tokenizer, tmp_path, monkeypatch, error, severity):
    """An engine whose log-probs are not the trainer's."""
    right = scheduler.sample_rows

    def wrong(*arguments):
        tokens, logprobs = right(*arguments)
        return tokens, logprobs - error

    monkeypatch.setattr(scheduler, "sample_rows", wrong)
    findings, _ = run(tokenizer, tmp_path, separate(3, 1e-3))
    assert (findings["rollout_gap"].severity, findings["rollout_gap"].step) == (severity, 3)
    assert "usual in float32: below 0.001" in findings["rollout_gap"].seen


def test_rollout_gap_of_a_filter(tokenizer, tmp_path):
    config = separate(3, 1e-3)
    filtered = replace(config, rollout=replace(config.rollout, top_k=3, keep_sampling_mask=False))
    found = run(tokenizer, tmp_path, filtered)[0]["rollout_gap"]
    assert found.severity == "warning"
    assert "rollout.keep_sampling_mask = true" in found.advice[0]
    kept = replace(config, rollout=replace(config.rollout, top_k=3))
    assert "rollout_gap" not in run(tokenizer, tmp_path / "kept", kept)[0]


def test_gradients_not_finite(tokenizer, tmp_path):
    findings, rows = run(tokenizer, tmp_path, job(steps=4), huge)
    assert sum(r["grad_norm/critic_not_finite"] for r in rows) > 0
    found = findings["gradients_not_finite"]
    assert (found.severity, found.step) == ("serious", 1)
    assert "critic's optimiser steps were skipped" in found.seen


def test_reward_failed(tokenizer, tmp_path):
    calls = iter(range(99))

    def flaky(completions):
        if next(calls) % 2:
            raise ValueError("no connection")
        return [float(len(c.text)) for c in completions]

    scorer = build_reward(RewardSettings(on_error="score"), flaky)
    findings, rows = run(tokenizer, tmp_path, job(steps=4), scorer)
    assert [r["reward_failed"] for r in rows] == [0, 12, 0, 12]
    found = findings["reward_failed"]
    assert (found.severity, found.step) == ("serious", 2)
    assert "for 24 of 48 responses in steps 1–4" in found.seen


def test_a_resumed_run_goes_on_with_the_same_doctor(tokenizer, tmp_path):
    """Fed with the rows before it, a doctor of a resumed run says nothing twice."""
    config = job(steps=8)
    log = SilentLog()
    trainer(tokenizer, config, tmp_path, reward=constant).train(log)
    doctor = Doctor(facts_of(config))
    for row in log.rows[:6]:
        doctor.see(row)
    assert [found.rule for row in log.rows[6:] for found in doctor.see(row)] == []
    assert [f.rule for f in doctor.findings()] == ["reward_without_variance"]


def test_weights_that_leave_out_every_token(tokenizer, tmp_path):
    never = CorrectionSettings("token_mask", low=1.5, high=2.0)
    findings, rows = run(tokenizer, tmp_path, separate(6, 1e-3, engine_correction=never))
    assert rows[-1]["engine_weight/dropped_share"] == 1.0
    assert findings["weights_drop_tokens"].severity == "serious"


@pytest.mark.parametrize(("top_k", "severity"), [(4, "serious"), (80, "warning"), (250, None)])
def test_filters_that_drop_much(tokenizer, tmp_path, top_k, severity):
    """Of a policy that has learnt nothing the likeliest 80 of 320 tokens have 0.7 of the probability."""
    config = separate(6, 1e-3)
    filtered = replace(config, rollout=replace(config.rollout, top_k=top_k))
    findings, rows = run(tokenizer, tmp_path, filtered)
    found = findings.get("filters_drop_much")
    assert (found and found.severity) == severity
    if found:
        assert f"leave out {median(r['dropped_mass'] for r in rows[-5:]):.0%} of a token's" in found.seen
    assert "rollout_gap" not in findings  # the mask is kept


@pytest.mark.parametrize(
    ("rule", "sampled", "greedy"),
    [
        ("greedy_unchanged", [0.1, 0.2, 0.5, 0.8, 0.9], [0.9] * 5),
        ("held_out_falls", [0.5, 0.9, 0.9, 0.5, 0.2], [0.1, 0.3, 0.5, 0.7, 0.9]),
    ],
)
def test_a_run_and_what_its_evaluations_may_say(tokenizer, tmp_path, rule, sampled, greedy):
    """The reward of the training prompts rises by 0.1 a step."""
    seen = []

    def better(rollout):
        seen.append(rollout)
        scores = vowels(rollout)
        return replace(scores, total=scores.total + 0.1 * len(seen))

    def evaluating(made):
        numbers = zip(sampled, greedy, strict=True)
        made.evaluate = lambda _: dict(zip(("reward", "greedy/reward"), next(numbers), strict=True))

    config = replace(separate(5, 1e-4), evaluation=EvaluationSettings(every=1))
    findings, _ = run(tokenizer, tmp_path, config, better, evaluating)
    assert rule in findings
    assert len({"greedy_unchanged", "held_out_falls"} & set(findings)) == 1


def test_every_rule_has_been_seen_at_work():
    """The names above are those of the rules: one without a test here would not be known to work."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in RULES if f'"{name}"' not in text] == []
