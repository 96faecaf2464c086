"""Section 3, items 24–26, on whole runs: KL in reward and loss, the adaptive coefficient, resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import job, parameters, trainer, vowels
from reward_run_cases import FILTER, Seen, only_even_prompts_vary, ptx_of, steps

from proxlm.config import PPOConfig, ShapingSettings
from proxlm.rl.kl import adapt_kl_coefficient
from proxlm.rl.ragged import segment_sum


@pytest.mark.checklist(24)
def test_rewards_of_a_run_sum_to_score_less_beta_kl_and_eos_has_its_share(tokenizer, monkeypatch):
    made = trainer(tokenizer, job(steps=4, lr=3e-3, batch_size=36, kl_coef=0.3), None)
    seen = Seen(made, monkeypatch)
    steps(made, 4)
    eos = 0
    for experience, scores, rollout in zip(seen.experiences, seen.scores, seen.rollouts, strict=True):
        offsets = experience.sequences.response_offsets
        kl = experience.old_logprobs - experience.ref_logprobs
        sums = segment_sum(experience.rewards, offsets)
        assert torch.allclose(sums, scores.total - 0.3 * segment_sum(kl, offsets), atol=1e-5)
        last = offsets[1:] - 1
        assert torch.allclose(experience.rewards[last], scores.total - 0.3 * kl[last], atol=1e-6)
        for row, finish in enumerate(rollout.finish):
            if finish == "eos":
                eos += 1
                at = int(last[row])
                assert int(experience.sequences.response_tokens[at]) == tokenizer.eos_token_id
                assert bool(experience.action_mask[at])
    assert eos > 0
    first = seen.experiences[0]
    assert torch.equal(first.old_logprobs, first.ref_logprobs)
    assert torch.equal(segment_sum(first.rewards, first.sequences.response_offsets), seen.scores[0].total)
    assert bool((seen.experiences[-1].old_logprobs != seen.experiences[-1].ref_logprobs).any())


@pytest.mark.checklist(25)
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_keeps_the_policy_nearer(tokenizer, monkeypatch, estimator):
    def last(coefficient):
        config = job(steps=8, lr=3e-3, kl_in="loss", kl_estimator=estimator, kl_coef=coefficient)
        made = trainer(tokenizer, config, None)
        seen = Seen(made, monkeypatch)
        rows = steps(made, 8)
        for experience, scores in zip(seen.experiences, seen.scores, strict=True):
            sums = segment_sum(experience.rewards, experience.sequences.response_offsets)
            assert torch.allclose(sums, scores.total, atol=1e-6)  # no KL in the rewards as well
        assert all((r["kl_loss"] > 0) is (coefficient > 0) for r in rows)
        return rows[-1]["kl"]

    assert last(2.0) < 0.5 * last(0.0)


@pytest.mark.checklist(25)
def test_k1_as_a_loss_is_refused():
    def keys(**ppo):
        base = PPOConfig()
        return [key for key, _ in replace(base, ppo=replace(base.ppo, **ppo)).problems()]

    assert "ppo.kl_estimator" in keys(kl_in="loss")
    assert "ppo.kl_estimator" in keys(kl_in="loss", kl_estimator="k1")
    for allowed in ({"kl_in": "loss", "kl_estimator": "k2"}, {"kl_in": "loss", "kl_estimator": "k3"}, {}):
        assert "ppo.kl_estimator" not in keys(**allowed)


@pytest.mark.checklist(26)
def test_the_adaptive_coefficient_follows_the_kl_of_the_run(tokenizer):
    config = job(steps=5, lr=3e-3, kl_controller="adaptive", kl_target=0.1, kl_horizon=50, kl_coef=0.2)
    rows = steps(trainer(tokenizer, config, None), 5)
    assert rows[0]["kl_coef"] == 0.2
    for row, after in pairwise(rows):
        assert after["kl_coef"] == adapt_kl_coefficient(row["kl_coef"], row["kl"], 0.1, 12, 50)
    assert rows[1]["kl_coef"] == pytest.approx(0.2 * (1 - 0.2 * 12 / 50))
    fixed = steps(trainer(tokenizer, job(steps=3, lr=3e-3), None), 3)
    assert [r["kl_coef"] for r in fixed] == [0.05] * 3


RESUMES = {
    "adaptive β": ({"kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100}, {}, vowels, 0),
    "running scale": ({}, {"scale": "running", "clip": 2.0}, vowels, 0),
    "scale of the reference": ({}, {"scale": "reference", "reference_samples": 24}, vowels, 0),
    "moving reference": ({"reference_decay": 0.7}, {}, vowels, 0),
    "filtered prompts": (FILTER, {}, only_even_prompts_vary, 0),
    "ptx": ({}, {}, vowels, 0.5),
    "everything": (
        {**FILTER, "kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100, "reference_decay": 0.5},
        {"scale": "running", "clip": 1.0},
        only_even_prompts_vary,
        0.5,
    ),
}


@pytest.mark.checklist(26)
@pytest.mark.checklist(28)
@pytest.mark.checklist(38)
@pytest.mark.parametrize("name", RESUMES)
def test_2_and_2_steps_are_4_steps_bitwise(tokenizer, tmp_path, name):
    ppo, shaping, reward, ptx = RESUMES[name]

    def made():
        config = job(steps=4, lr=3e-3, shaping=ShapingSettings(**shaping), **ppo)
        return trainer(tokenizer, config, tmp_path, reward=reward, ptx=ptx_of(ptx) if ptx else None)

    whole = made()
    rows = steps(whole, 4)
    first = made()
    steps(first, 2)
    first.save()
    second = made()
    second.resume()
    assert second.state == first.state
    again = steps(second, 2)
    assert second.state == whole.state
    a, b = parameters(whole), parameters(second)
    assert all(torch.equal(a[n], b[n]) for n in a)
    for one, two in zip(
        whole.models.reference.network.parameters(), second.models.reference.network.parameters(), strict=True
    ):
        assert torch.equal(one, two)
    for before, after in zip(rows[2:], again, strict=True):
        for key in ("kl", "reward", "score", "kl_coef", "policy_loss", "ptx_loss"):
            assert before[key] == after[key]
    if ppo.get("kl_controller"):
        assert whole.state.kl_coef != 0.05
    if ppo.get("filter_groups"):
        assert whole.state.draws > 4
    if ptx:
        assert whole.state.ptx_batches == 4 * 6
