"""Items 18, 32 and 38 of the checklist on whole updates: layout, order, masked tokens, resume.

The parameters after a PPO step (6 optimiser steps) are compared, with AdamW's default ε of 1e-5; and the gradients.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer, vowels, with_ppo

from proxlm.config import OptimiserConfig, OptimisersConfig, RolloutConfig, ShapingConfig
from proxlm.data.prompts import PromptStream
from proxlm.models import forward
from proxlm.rl.moments import Moments
from proxlm.rollout.native import generate
from proxlm.train.ppo import PPOTrainer
from proxlm.train.prepare import StepNumbers, prepare
from proxlm.train.update import Learner, plan_pass, update
from proxlm.types import Prompt, Rollout, Scores
from small_models import WORDS

CRITICS = ["shared", "separate", "none"]
AGGREGATIONS = ["token", "sequence", "fixed"]
START = StepNumbers(temperature=1.0, kl_coef=0.05, moments=Moments(), warmup=False)


def settings(critic, aggregation="token", **more):
    """A job of one PPO step, with a critic or without one."""
    free = {"advantage": "reinforce++"} if critic == "none" else {}
    name = "shared" if critic == "none" else critic
    return job(name, steps=1, aggregation=aggregation, **free | more)


def close(found, wanted, tolerance=1e-6, label=""):
    """‖a − b‖ ≤ tolerance · ‖b‖ for each tensor, those that begin at 0 (the value head, biases) among them."""
    assert set(found) == set(wanted)
    for name, b in wanted.items():
        worst = float((found[name] - b).norm()) / float(b.norm())
        assert worst <= tolerance, (label, name, worst)


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


class Gradients:
    """The gradients that each optimiser step of a trainer began with."""

    def __init__(self, made, monkeypatch):
        self.steps: list[dict[str, torch.Tensor]] = []
        for who, optimiser in made._optimisers():
            monkeypatch.setattr(optimiser, "step", self._looking(who, optimiser, optimiser.step))

    def _looking(self, who, optimiser, step):
        def look(*arguments):
            self.steps.append(
                {f"{who}.{n}": p.grad.clone() for n, p in optimiser.named if p.grad is not None}
            )
            return step(*arguments)

        return look


LONG = " ".join([WORDS[1]] * 4)


def made_with(tokenizer, config, folder, lora=0):
    """A trainer whose prompts are of very unlike lengths, one of them long: it pads the others."""
    texts = [*WORDS, LONG, "a", *WORDS[:4]]
    prompts = [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)]
    stream = PromptStream(prompts, config.ppo.batch_size, config.run.seed)
    return PPOTrainer(config, actors(tokenizer, config, lora), stream, vowels, folder)


def after_a_step(made):
    log = SilentLog()
    made.train(log)
    return parameters(made)


LAYOUTS = [(60, False), (10_000, False), (10_000, True)]


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_step_does_not_depend_on_micro_batches_padding_or_packing(tokenizer, tmp_path, critic, aggregation):
    """One row at a time has no padding at all; all at once, the short rows are mostly padding."""
    config = settings(critic, aggregation, micro_batch_tokens=1)
    one = made_with(tokenizer, config, tmp_path)
    before, wanted = parameters(one), after_a_step(one)
    assert len(moved(before, wanted)) == len(before)
    for budget, packed in LAYOUTS:
        other = with_ppo(config, micro_batch_tokens=budget)
        other = replace(other, model=replace(other.model, packed=packed))
        close(after_a_step(made_with(tokenizer, other, tmp_path)), wanted, label=f"{budget} {packed}")


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize(
    "more",
    [
        {"loss": "gspo", "aggregation": "sequence"},
        {"loss": "cispo"},
        {"loss": "pg"},
        {"loss": "dppo"},
        {"entropy_coef": 0.01},
        {"kl_in": "loss", "kl_estimator": "k3"},
        {"advantage": "grpo", "samples_per_prompt": 3, "batch_size": 4},
        {"truncation": "bootstrap"},
    ],
    ids=str,
)
def test_other_losses_do_not_depend_on_it_either(tokenizer, tmp_path, more):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings("shared", **{"micro_batch_tokens": budget, **more})
        config = replace(config, model=replace(config.model, packed=packed))
        results.append(after_a_step(made_with(tokenizer, config, tmp_path)))
    for other in results[1:]:
        close(other, results[0])


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_other_families_do_not_depend_on_it_either(tokenizer, tmp_path, family):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings("separate", micro_batch_tokens=budget)
        config = replace(config, model=replace(config.model, packed=packed))
        results.append(after_a_step(trainer(tokenizer, config, tmp_path, family=family)))
    for other in results[1:]:
        # GPT-2's biases begin at 0: what is compared of them is the movement alone.
        close(other, results[0], tolerance=3e-6)


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("critic", CRITICS)
def test_accumulated_gradients_are_those_of_the_whole_minibatch(tokenizer, tmp_path, monkeypatch, critic):
    """The gradient of the first minibatch, which no optimiser has touched."""
    found = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings(critic, micro_batch_tokens=budget)
        config = replace(config, model=replace(config.model, packed=packed))
        made = made_with(tokenizer, config, tmp_path)
        gradients = Gradients(made, monkeypatch)
        if critic != "none":  # at a head of 0 a separate trunk would have no gradient
            torch.manual_seed(2)
            torch.nn.init.normal_(made.models.value_head.linear.weight, std=0.2)
        made.train(SilentLog())
        first = 1 if critic == "none" else 2
        found.append({name: g for step in gradients.steps[:first] for name, g in step.items()})
    for other in found[1:]:
        assert set(other) == set(found[0])
        for name, g in found[0].items():
            assert float(g.norm()) > 0
            assert float((other[name] - g).norm()) <= 2e-5 * float(g.norm()), name


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_step_does_not_depend_on_more_padding(tokenizer, tmp_path, monkeypatch, critic):
    """Each row padded by 40 tokens more, and with another token."""
    config = settings(critic, micro_batch_tokens=10_000)
    wanted = after_a_step(made_with(tokenizer, config, tmp_path))
    original = forward.pad_right

    def wider(sequences):
        padded, place = original(sequences)
        count, longest = padded.shape
        more = torch.full((count, longest + 40), 33)
        place = place // longest * (longest + 40) + place % longest
        more.view(-1)[place] = sequences.tokens
        return more, place

    monkeypatch.setattr(forward, "pad_right", wider)
    close(after_a_step(made_with(tokenizer, config, tmp_path)), wanted)


def learner_of(made, limit=12):
    return Learner(
        made.models,
        made.optimisers,
        made.config.ppo,
        made.algorithm.loss,
        temperature=1.0,
        limit=limit,
        seed=0,
        step=0,
        kl_coef=0.05 if made.config.ppo.kl_in == "loss" else 0.0,
        entropy_coef=made.config.ppo.entropy_coef,
    )


def rollout_of(tokenizer, config):
    models = actors(tokenizer, config)
    stream = made_with(tokenizer, config, None).prompts
    rollout = generate(models.policy, stream.batch(0), config.rollout, seed=0, step=0)
    return rollout, vowels(rollout)


def prepared(made, rollout, scores):
    plan = plan_pass(rollout.sequences.lengths, made.config.ppo, 0, 0, 0)
    layout = [micro for minibatch in plan for micro in minibatch]
    return prepare(made.models, rollout, scores, made.config, made.algorithm, START, layout)[0]


def learnt_from(tokenizer, config, rollout, scores):
    made = made_with(tokenizer, config, None)
    update(learner_of(made), prepared(made, rollout, scores))
    return parameters(made)


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("critic", CRITICS)
def test_a_step_does_not_depend_on_the_order_of_the_rows(tokenizer, critic, aggregation):
    """From the rollout on: log-probs, values, advantages, whitening and update."""
    config = settings(critic, aggregation, minibatches=1)
    rollout, scores = rollout_of(tokenizer, config)
    offsets = rollout.sequences.response_offsets
    wanted = learnt_from(tokenizer, config, rollout, scores)
    generator = torch.Generator().manual_seed(1)
    orders = torch.arange(11, -1, -1), torch.randperm(12, generator=generator)
    for order, packed in zip(orders, (False, True), strict=True):
        other = replace(config, model=replace(config.model, packed=packed))
        got = learnt_from(tokenizer, other, rollout.select(order), scores.select(order, offsets))
        close(got, wanted, label=f"{order.tolist()} {packed}")


# Masked tokens


def with_spans(rollout):
    """Every response of 6 tokens or more has two spans that the policy did not choose; one row has none chosen."""
    mask = rollout.action_mask.clone()
    for b, (first, last) in enumerate(
        zip(rollout.sequences.response_offsets, rollout.sequences.response_offsets[1:], strict=False)
    ):
        first, last = int(first), int(last)
        if last - first >= 6:
            mask[first + 1 : first + 3] = False
            mask[last - 2 : last - 1] = False
        if b == 4:
            mask[first:last] = False
    return replace(rollout, action_mask=mask)


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.checklist(3)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"entropy_coef": 0.01, "kl_in": "loss", "kl_estimator": "k3"},
        {"loss": "pg"},
        {"loss": "cispo"},
        {"loss": "dppo"},
        {"loss": "gspo"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("critic", "aggregation"), list(zip(CRITICS, AGGREGATIONS, strict=True)))
def test_masked_tokens_have_no_part_in_the_update(tokenizer, critic, aggregation, more):
    """Whatever stands on them as advantage, return, value, old log-prob or correction: not a bit changes."""
    config = settings(critic, aggregation, minibatches=2, **more)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    masked = ~rollout.action_mask
    assert 10 < int(masked.sum()) < len(masked) - 10
    results = []
    for noise in (0.0, 50.0):
        made = made_with(tokenizer, config, None)
        experience = prepared(made, rollout, scores)
        torch.manual_seed(int(noise))
        changed = {
            name: torch.where(masked, noise * torch.randn(len(masked)), getattr(experience, name))
            for name in ("advantages", "returns", "values", "rewards", "correction")
        }
        changed |= {
            name: getattr(experience, name) - torch.where(masked, 0.1 * noise, 0.0)
            for name in ("old_logprobs", "ref_logprobs")
        }
        update(learner_of(made), replace(experience, **changed))
        results.append(parameters(made))
    assert not moved(results[0], results[1])


@pytest.mark.checklist(18)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_same_changes_on_chosen_tokens_do_change_the_update(tokenizer, critic):
    config = settings(critic, minibatches=2)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    results = []
    for noise in (0.0, 1.0):
        made = made_with(tokenizer, config, None)
        experience = prepared(made, rollout, scores)
        torch.manual_seed(1)
        change = torch.where(rollout.action_mask, noise * torch.randn(len(rollout.logprobs)), 0.0)
        update(
            learner_of(made),
            replace(
                experience,
                advantages=experience.advantages + change,
                returns=experience.returns + change,
            ),
        )
        results.append(parameters(made))
    assert moved(*results) == set(results[0])


@pytest.mark.checklist(18)
@pytest.mark.parametrize(("critic", "aggregation"), list(zip(CRITICS, AGGREGATIONS, strict=True)))
def test_a_row_without_a_chosen_token_counts_for_nothing(tokenizer, critic, aggregation):
    """Added to an experience, it does not even enter the mean over sequences."""
    config = settings(critic, aggregation, minibatches=1, micro_batch_tokens=10_000)
    rollout, scores = rollout_of(tokenizer, config)
    rollout = with_spans(rollout)
    results = []
    for rows in (torch.arange(12), torch.tensor([b for b in range(12) if b != 4])):
        made = made_with(tokenizer, config, None)
        experience = prepared(made, rollout, scores).select(rows)
        update(learner_of(made), experience)
        results.append(parameters(made))
    close(results[1], results[0])


@pytest.mark.checklist(18)
@pytest.mark.checklist(32)
@pytest.mark.parametrize("critic", CRITICS)
def test_masked_spans_do_not_depend_on_the_layout(tokenizer, critic):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings(critic, "sequence", micro_batch_tokens=budget)
        config = replace(config, model=replace(config.model, packed=packed))
        rollout, scores = rollout_of(tokenizer, config)
        results.append(learnt_from(tokenizer, config, with_spans(rollout), scores))
    for other in results[1:]:
        close(other, results[0])


# 38: resume

GROUPS = {"samples_per_prompt": 3, "batch_size": 4}
RESUMED = {
    "shared": {},
    "packed": {"critic": "separate", "packed": True},
    "lora": {"lora": 4},
    "lora, packed": {"lora": 4, "packed": True, "critic": "separate"},
    "grpo": {"advantage": "grpo", "kl_in": "loss", "kl_estimator": "k3", **GROUPS},
    "trpo": {"loss": "trpo"},
    "filtered": {"filter_groups": True, "filter_rounds": 3, "advantage": "grpo", **GROUPS},
    "running": {"shaping": ShapingConfig(scale="running", clip=2.0)},
    "reference scale": {"shaping": ShapingConfig(scale="reference", reference_samples=16)},
    "moving reference": {"reference_decay": 0.9},
    "adaptive": {"kl_controller": "adaptive", "kl_target": 0.1, "kl_horizon": 100.0},
    "warm-up": {"critic_warmup": 3, "critic": "separate"},
    "schedule": {},
    "temperature": {},
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
    lora = more.pop("lora", 0)
    size = {"batch_size": 8, "minibatches": 2}
    config = job(more.pop("critic", "shared"), steps=4, **size | more)
    if name == "schedule":
        optimiser = OptimiserConfig(lr=1e-3, schedule="cosine", warmup=3, weight_decay=0.1)
        config = replace(config, optim=OptimisersConfig(optimiser, optimiser))
    if name == "temperature":
        config = replace(
            config, rollout=RolloutConfig(max_new_tokens=12, temperature=0.7, final_temperature=1.3)
        )
    reward = sometimes_equal if name == "filtered" else vowels

    def fresh(folder):
        seen = Recording(reward)
        return trainer(tokenizer, config, tmp_path / folder, lora, reward=seen), seen

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
    for (who, a), (other, b) in zip(whole._optimisers(), second._optimisers(), strict=True):
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
        assert whole.state.moments.n > 0


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


@pytest.mark.checklist(32)
@pytest.mark.checklist(38)
def test_lora_does_not_depend_on_the_layout(tokenizer, tmp_path):
    results = []
    for budget, packed in ((1, False), (10_000, False), (60, True)):
        config = settings("shared", micro_batch_tokens=budget)
        config = replace(config, model=replace(config.model, packed=packed))
        results.append(after_a_step(made_with(tokenizer, config, tmp_path, lora=4)))
    for other in results[1:]:
        # B begins at 0: what is compared of it is the movement alone.
        close(other, results[0], tolerance=3e-6)
