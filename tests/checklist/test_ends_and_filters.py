"""Section 4, items 31, 33 and 34: ends, temperature, filters."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import SilentLog, actors, job, parameters, trainer, with_ppo
from sampling_cases import ENCODER_DECODERS, FAMILIES, LAYOUTS, own_logits, prompts, rows_of, sampled
from torch import nn

from proxlm.config import (
    RolloutSettings,
)
from proxlm.engine import scheduler
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.models.forward import token_outputs
from proxlm.train.ppo.learner import step_parameters
from proxlm.train.ppo.prepare import prepare
from proxlm.types import Scores
from small_models import tiny_model

NEVER = -1


def prepared(models, rollout, config, temperature=1.0):
    scores = Scores(torch.linspace(-1.0, 1.0, len(rollout)))
    parameters = replace(step_parameters(config), temperature=temperature, kl_coef=0.05)
    config = with_ppo(config, minibatches=1, micro_batch_tokens=10_000)
    found = prepare(models, rollout, scores, config, parameters=parameters)
    return found.experience, found.metrics


def with_noise(models, scale=0.3):
    """The policy moves away from its reference."""
    torch.manual_seed(5)
    with torch.no_grad():
        for _, p in models.policy_parameters():
            p.add_(scale * p.std() * torch.randn_like(p) if p.numel() > 1 else 0.0)
    return models


def force_tokens(monkeypatch, script):
    """Row b (in the order of the prompts) gets script[b][t]; its log-prob is the model's."""

    def places(seeds, count):
        rows = torch.tensor([seed.prompt_id for seed in seeds])
        return (rows[:, None] * 1000 + torch.arange(count)).double()

    def forced(logits, place, distributions, kept):
        where = [divmod(int(x), 1000) for x in place.tolist()]
        tokens = torch.tensor([script[b][t] for b, t in where])
        return tokens, torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None]).squeeze(-1)

    monkeypatch.setattr(scheduler, "request_uniforms", places)
    monkeypatch.setattr(scheduler, "sample_rows", forced)


def scripts(eos, places, limit):
    """Ordinary tokens, EOS first at each of the places, and, after it, more EOS and ordinary tokens."""
    rows = []
    for b, place in enumerate(places):
        row = [20 + (5 * b + t) % 40 for t in range(limit)]
        if place != NEVER:
            row[place:] = [eos if (t - place) % 2 == 0 else row[t] for t in range(place, limit)]
        rows.append(row)
    return rows


@pytest.mark.checklist(31)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_cut_after_its_first_eos(tokenizer, monkeypatch, family, pad_is_eos, batch_size):
    if pad_is_eos:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
    else:
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
    eos, limit = tokenizer.eos_token_id, 8
    places = [0, 3, limit - 1, NEVER, 0, 1]
    script = scripts(eos, places, limit)
    force_tokens(monkeypatch, script)
    config = job("shared", lam=1.0, whiten_advantages="never")
    config = replace(config, rollout=RolloutSettings(max_new_tokens=limit, batch_size=batch_size))
    models = actors(tokenizer, config, family=family)
    asked = prompts(tokenizer)
    rollout = generate(NativeEngine(models.policy, config.rollout), asked, config.rollout, seed=0, step=0)

    wanted = [row if place == NEVER else row[: place + 1] for row, place in zip(script, places, strict=True)]
    got = [row.tolist() for row in rows_of(rollout.sequences.response_tokens, rollout.sequences)]
    assert got == wanted
    assert rollout.finish == ["length" if place == NEVER else "eos" for place in places]
    assert rollout.action_mask.all()
    assert len(rollout.action_mask) == len(rollout.logprobs) == sum(map(len, wanted))
    # The log-prob of each token, the EOS among them, is the model's own.
    own = torch.log_softmax(own_logits(models.policy, rollout.sequences), -1)
    own = own.gather(-1, rollout.sequences.response_tokens[:, None]).squeeze(-1)
    assert torch.allclose(rollout.logprobs, own, atol=1e-5, rtol=0)
    is_eos = rollout.sequences.response_tokens == eos
    assert int(is_eos.sum()) == 5
    assert (rollout.logprobs[is_eos] < 0).all()

    # The EOS is an action to the update, too: it has the reward, and every action weighs the same.
    experience, metrics = prepared(models, rollout, config)
    assert torch.equal(experience.action_mask, rollout.action_mask)
    assert torch.allclose(experience.old_logprobs, own, atol=1e-5, rtol=0)
    for reward, length in zip(
        rows_of(experience.rewards, rollout.sequences), rollout.sequences.response_lengths, strict=True
    ):
        assert (reward[: length - 1] == 0).all()
    assert (experience.advantages[is_eos] != 0).all()
    assert metrics["response_length"] == pytest.approx(sum(map(len, wanted)) / 6)


@pytest.mark.checklist(31)
def test_pad_equal_to_eos_changes_nothing_in_a_ppo_step(tokenizer, tmp_path):
    """Weights, sampling and update are the same whatever the tokenizer calls padding."""
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    start = tiny_model(tokenizer).network.state_dict()
    made = []
    for which in (tokenizer, same):
        one = trainer(which, job(steps=2), tmp_path)
        for model in (one.models.policy, one.models.reference):
            # transformers starts the padding token's embedding at 0 and keeps it: here all begin alike.
            model.network.load_state_dict(start)
            for module in model.network.modules():
                if isinstance(module, nn.Embedding):
                    module.padding_idx = None
        log = SilentLog()
        one.train(log)
        made.append((parameters(one), log.rows))
    (a, rows_a), (b, rows_b) = made
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert [r["reward"] for r in rows_a] == [r["reward"] for r in rows_b]


@pytest.mark.checklist(33)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize(("family", "packed"), LAYOUTS)
def test_temperature_is_the_same_in_rollout_old_new_and_reference(tokenizer, family, temperature, packed):
    config = replace(
        job("separate", packed=packed), rollout=RolloutSettings(max_new_tokens=12, temperature=temperature)
    )
    models = with_noise(actors(tokenizer, config, family=family))
    rollout = sampled(models.policy, temperature=temperature)
    experience, _ = prepared(models, rollout, config, temperature)
    tokens = rollout.sequences.response_tokens[:, None]
    found = {}
    for name, network in (("policy", models.policy.network), ("reference", models.reference.network)):
        logits = own_logits(models.policy, rollout.sequences, network)
        found[name] = torch.log_softmax(logits / temperature, -1).gather(-1, tokens).squeeze(-1)
        plain = torch.log_softmax(logits, -1).gather(-1, tokens).squeeze(-1)
        assert float((found[name] - plain).abs().max()) > 0.05
    assert float((found["policy"] - found["reference"]).abs().max()) > 0.05
    with torch.no_grad():
        new = models.policy_outputs(rollout.sequences, temperature).logprobs
    for got in (rollout.logprobs, experience.old_logprobs, new):
        assert float((got - found["policy"]).abs().max()) <= 1e-5
    for got in (experience.ref_logprobs, models.reference_logprobs(rollout.sequences, temperature)):
        assert float((got - found["reference"]).abs().max()) <= 1e-5


@pytest.mark.checklist(33)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
@pytest.mark.parametrize("family", ["llama", *ENCODER_DECODERS])
def test_the_reference_of_lora_has_the_temperature_too(tokenizer, family, temperature):
    config = job("shared")
    models = with_noise(actors(tokenizer, config, lora=4, family=family))
    rollout = sampled(models.policy, temperature=temperature)
    base = tiny_model(tokenizer, family)
    with torch.no_grad():
        wanted = token_outputs(base, rollout.sequences, temperature).logprobs
    assert torch.equal(models.reference_logprobs(rollout.sequences, temperature), wanted)


@pytest.mark.checklist(33)
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("family", ["llama", *ENCODER_DECODERS])
@pytest.mark.parametrize(("start", "end"), [(0.7, 0.0), (1.3, 0.0), (0.7, 1.3)])
def test_a_whole_run_at_a_temperature_begins_each_step_at_ratio_1(
    tokenizer, tmp_path, start, end, family, critic
):
    config = job(critic, steps=3)
    sampling = RolloutSettings(max_new_tokens=12, temperature=start, final_temperature=end)
    log = SilentLog()
    trainer(tokenizer, replace(config, rollout=sampling), tmp_path, family=family).train(log)
    wanted = [start + (end - start) * i / 2 if end else start for i in range(3)]
    assert [row["temperature"] for row in log.rows] == pytest.approx(wanted)
    for row in log.rows:
        assert row["first_minibatch/ratio_error"] == 0.0
        assert row["rollout_gap"] < 1e-5
    assert log.rows[0]["kl"] == 0.0


def kept_by_hand(p, top_k, top_p, min_p):
    """The kept tokens of one distribution (a list), in plain Python."""
    kept = sorted(range(len(p)), key=lambda i: -p[i])
    kept = [i for i in kept if p[i] >= min_p * max(p)]
    kept = kept[:top_k] if top_k else kept
    total, reached, chosen = sum(p[i] for i in kept), 0.0, []
    for i in kept:
        if chosen and reached >= top_p * total:
            break
        chosen.append(i)
        reached += p[i]
    return chosen


@pytest.mark.checklist(34)
@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.7},
        {"top_k": 4, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
        {"top_p": 0.9, "temperature": 0.7},
        {"top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", *ENCODER_DECODERS])
def test_the_stored_logprob_is_the_filtered_one_enumerated(tokenizer, family, filters):
    model = tiny_model(tokenizer, family)
    temperature = filters.get("temperature", 1.0)
    rollout = sampled(model, count=12, **filters)
    logits = own_logits(model, rollout.sequences).double() / temperature
    dropped = 0
    for p, token, logprob in zip(
        torch.softmax(logits, -1).tolist(),
        rollout.sequences.response_tokens.tolist(),
        rollout.logprobs.tolist(),
        strict=True,
    ):
        kept = kept_by_hand(p, filters.get("top_k", 0), filters.get("top_p", 1.0), filters.get("min_p", 0.0))
        assert token in kept
        assert logprob == pytest.approx(math.log(p[token] / sum(p[i] for i in kept)), abs=1e-5)
        dropped += len(p) - len(kept)
    assert dropped > 0


@pytest.mark.checklist(34)
def test_filters_are_off_by_default_and_then_nothing_is_dropped(tokenizer):
    assert (RolloutSettings().top_k, RolloutSettings().top_p, RolloutSettings().min_p) == (0, 1.0, 0.0)
    model = tiny_model(tokenizer)
    rollout = sampled(model)
    with torch.no_grad():
        assert torch.allclose(token_outputs(model, rollout.sequences).logprobs, rollout.logprobs, atol=1e-5)


@pytest.mark.checklist(34)
def test_with_filters_the_correction_is_the_ratio_to_the_filtered_policy(tokenizer):
    config = job()
    full = replace(config.ppo.engine_correction, mode="token")
    config = replace(config, ppo=replace(config.ppo, engine_correction=full))
    models = actors(tokenizer, config)
    rollout = sampled(models.policy, top_k=3, keep_sampling_mask=False)
    experience, metrics = prepared(models, rollout, config)
    wanted = (experience.old_logprobs - rollout.logprobs).exp()
    assert torch.allclose(experience.correction, wanted, rtol=1e-5)
    assert float(wanted.min()) < 0.95  # the filters raised these tokens' probability
    assert metrics["rollout_gap"] > 1e-3
