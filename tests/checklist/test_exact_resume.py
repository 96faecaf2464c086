"""Section 4, item 38: steps before and after a resume are the steps of one run."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, job, parameters, trainer, vowels
from update_cases import (
    moved,
)

from proxlm.config import (
    OptimiserSettings,
    OptimisersSettings,
    RolloutSettings,
    ShapingSettings,
    ValueSettings,
)
from proxlm.types import Rollout, Scores

GROUPS = {"samples_per_prompt": 3, "batch_size": 4}


RESUMED = {
    "shared": {},
    "packed": {"critic": "separate", "packed": True},
    "lora": {"lora": 4},
    "lora, packed": {"lora": 4, "packed": True, "critic": "separate"},
    "grpo": {"advantage": "grpo", "kl_in": "loss", "kl_estimator": "k3", **GROUPS},
    "trpo": {"loss": "trpo"},
    "filtered": {"filter_groups": True, "filter_rounds": 3, "advantage": "grpo", **GROUPS},
    "running": {"shaping": ShapingSettings(scale="running", clip=2.0)},
    "reference scale": {"shaping": ShapingSettings(scale="reference", reference_samples=16)},
    "moving reference": {"reference_decay": 0.9},
    "adaptive": {"kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100.0},
    "warm-up": {"critic_warmup": 3, "critic": "separate"},
    "categorical": {"critic": "separate", "value": ValueSettings("categorical", -1.0, 1.0, 21)},
    "heads": {"critic": "separate", "value": ValueSettings(heads=3, combine="min", head_share=0.5)},
    "schedule": {},
    "temperature": {},
    "lstm": {"family": "lstm", "critic": "separate", "packed": True},
    "sampling mask": {},
    "t5": {"critic": "separate", "family": "t5"},
    "bart": {"family": "bart"},
    "t5, lora": {"family": "t5", "lora": 4},
}


def sometimes_equal(rollout: Rollout) -> Scores:
    """Whether a response has the letter e: many groups of prompts have but one score."""
    return Scores(torch.tensor([float("e" in text) for text in rollout.texts]))


class Recording:
    """A reward that keeps what it saw: the prompts drawn and the tokens sampled."""

    def __init__(self, reward):
        self.reward, self.seen = reward, []

    def __call__(self, rollout):
        self.seen.append(([p.id for p in rollout.prompts], rollout.sequences.tokens.tolist()))
        return self.reward(rollout)


def disturb_generators():
    """Whatever else the process does between the parts must not matter."""
    torch.manual_seed(12345)
    random.seed(12345)


@pytest.mark.checklist(38)
@pytest.mark.parametrize("name", RESUMED)
def test_two_and_two_steps_are_four(tokenizer, tmp_path, name):
    more = dict(RESUMED[name])
    lora, family = more.pop("lora", 0), more.pop("family", "llama")
    size = {"batch_size": 8, "minibatches": 2}
    config = job(more.pop("critic", "shared"), steps=4, **size | more)
    if name == "schedule":
        optimiser = OptimiserSettings(lr=1e-3, schedule="cosine", warmup=3, weight_decay=0.1)
        config = replace(config, optim=OptimisersSettings(optimiser, optimiser))
    if name == "temperature":
        config = replace(
            config, rollout=RolloutSettings(max_new_tokens=12, temperature=0.7, final_temperature=1.3)
        )
    if name == "sampling mask":
        config = replace(config, rollout=RolloutSettings(max_new_tokens=12, top_p=0.8))
    reward = sometimes_equal if name == "filtered" else vowels

    def fresh(folder):
        seen = Recording(reward)
        return trainer(tokenizer, config, tmp_path / folder, lora, reward=seen, family=family), seen

    whole, seen = fresh("whole")
    whole_log, later_log = SilentLog(), SilentLog()
    whole.train(whole_log)
    first, seen_first = fresh("parts")
    for _ in range(2):
        first.step(SilentLog())
        disturb_generators()
    first.save()
    second, seen_second = fresh("parts")
    disturb_generators()
    second.resume()
    assert second.state == first.state
    assert second.state.step == 2
    second.train(later_log)

    assert seen.seen == seen_first.seen + seen_second.seen
    assert not moved(parameters(whole), parameters(second))
    assert moved(parameters(first), parameters(second))
    assert second.state == whole.state
    for (who, a), (other, b) in zip(
        whole.optimisers_by_name().items(), second.optimisers_by_name().items(), strict=True
    ):
        assert who == other
        one, two = a.state_tensors(), b.state_tensors()
        assert set(one) == set(two)
        # A trust-region step uses no AdamW for the policy; and it does not learn in a warm-up.
        assert one or (who == "policy" and name == "trpo")
        assert not moved(one, two)
    reference = whole.models.reference
    assert (reference is None) is bool(lora)
    if reference is not None:
        one, two = (dict(m.models.reference.network.named_parameters()) for m in (whole, second))
        assert not moved(one, two)
        fixed = dict(fresh("other")[0].models.reference.network.named_parameters())
        assert bool(moved(one, fixed)) is (name == "moving reference")
    skipped = ("time", "tokens_per_second", "memory")
    for x, y in zip(whole_log.rows[2:], later_log.rows, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            assert key.startswith(skipped) or x[key] == y[key] or x[key] != x[key], key
    if name == "adaptive":
        assert whole.state.kl_coef != 0.05
    if name == "filtered":
        assert whole.state.draws > 4
    if name in ("running", "reference scale"):
        assert whole.state.score_statistics.n > 0


@pytest.mark.checklist(38)
def test_one_and_three_and_a_resume_after_each_step_are_four(tokenizer, tmp_path):
    """The place where a run is cut does not matter, nor how often."""
    config = job("shared", steps=4, batch_size=8, kl_controller="adaptive", kl_target=0.1, kl_horizon=100.0)
    whole = trainer(tokenizer, config, tmp_path / "whole")
    whole.train(SilentLog())
    for folder, cuts in (("one", [1, 3]), ("each", [1, 1, 1, 1])):
        made = None
        for steps in cuts:
            made = trainer(tokenizer, config, tmp_path / folder)
            if (tmp_path / folder).exists():
                made.resume()
            for _ in range(steps):
                made.step(SilentLog())
            made.save()
            disturb_generators()
        assert not moved(parameters(whole), parameters(made))
        assert made.state == whole.state
