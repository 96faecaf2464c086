"""Several models as one engine: the mean of their probabilities, exactly."""

from __future__ import annotations

import math
from contextlib import closing

import pytest
import torch

from proxlm.config import RolloutSettings
from proxlm.engine.averaging import AveragingEngine, averaged_logprobs, mean_log_probs
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.errors import ModelError
from proxlm.types import Prompt, Sequences
from small_models import WORDS, tiny_model

SETTINGS = RolloutSettings(max_new_tokens=12, batch_size=3, temperature=1.0)


def test_the_mean_of_two_distributions_by_hand():
    logits = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(9.0), 0.0]])]
    assert mean_log_probs(logits).exp()[0].tolist() == pytest.approx(
        [(1 / 4 + 9 / 10) / 2, (3 / 4 + 1 / 10) / 2]
    )


def prompts_of(model):
    texts = [word for word in WORDS if len(model.tokenizer(word)["input_ids"]) < 40]
    return [Prompt(i, tuple(model.tokenizer(text)["input_ids"]), text) for i, text in enumerate(texts)]


def direct(models, prompt, response, temperature):
    """Log-probs of a response by each model's own forward over the whole text."""
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        mean = sum(torch.softmax(m.network(ids).logits[0].double(), -1) for m in models) / len(models)
    logs = torch.log_softmax(mean.log() / temperature, -1)
    return [float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]


@pytest.mark.parametrize("types", [("llama", "gpt2"), ("llama", "lstm", "llama")])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_sampled_from_the_mean_of_the_probabilities(tokenizer, types, temperature):
    """The log-prob of each sampled token is that of the averaged softmax; rows leave and join on the way."""
    models = [tiny_model(tokenizer, type, seed=i) for i, type in enumerate(types)]
    settings = RolloutSettings(max_new_tokens=12, batch_size=3, temperature=temperature)
    with closing(AveragingEngine(models, settings)) as engine:
        rollout = generate(engine, prompts_of(models[0]), settings, seed=1, step=0)
    sequences = rollout.sequences
    scored = averaged_logprobs(models, sequences, temperature)
    assert torch.allclose(scored, rollout.logprobs, atol=2e-5)
    at = 0
    for row, prompt in enumerate(rollout.prompts):
        one = sequences.select(torch.tensor([row]))
        response = one.response_tokens.tolist()
        expected = direct(models, prompt.input_ids, response, temperature)
        assert rollout.logprobs[at : at + len(response)].tolist() == pytest.approx(expected, abs=1e-4)
        at += len(response)


def test_one_model_twice_is_that_model(tokenizer):
    model = tiny_model(tokenizer)
    found = []
    for engine in (NativeEngine(model, SETTINGS), AveragingEngine([model, model], SETTINGS)):
        with closing(engine):
            found.append(generate(engine, prompts_of(model), SETTINGS, seed=3, step=0))
    assert found[0].texts == found[1].texts
    assert torch.allclose(found[0].logprobs, found[1].logprobs, atol=1e-5)


def test_greedy_takes_what_is_likeliest_on_average(tokenizer):
    models = [tiny_model(tokenizer, seed=seed) for seed in (0, 1)]
    settings = RolloutSettings(max_new_tokens=6, temperature=0.0)
    with closing(AveragingEngine(models, settings)) as engine:
        rollout = generate(engine, prompts_of(models[0])[:2], settings, seed=1, step=0)
    for row, prompt in enumerate(rollout.prompts):
        text = list(prompt.input_ids)
        for token in rollout.sequences.select(torch.tensor([row])).response_tokens.tolist():
            with torch.no_grad():
                mean = sum(torch.softmax(m.network(torch.tensor([text])).logits[0, -1], -1) for m in models)
            assert token == int(mean.argmax())
            text.append(token)


def test_heads_of_other_sizes_and_new_weights_are_refused(tokenizer):
    model, other = tiny_model(tokenizer), tiny_model(tokenizer)
    other.network.resize_token_embeddings(len(tokenizer) + 8)
    with pytest.raises(ModelError, match="their probabilities have no mean"):
        AveragingEngine([model, other], SETTINGS)
    with pytest.raises(ModelError, match="train each by itself"):
        AveragingEngine([model, model], SETTINGS).load_weights([], 1)


def test_it_is_scored_in_parts_alike(tokenizer, monkeypatch):
    models = [tiny_model(tokenizer, seed=seed) for seed in (0, 1)]
    batch = Sequences.from_lists([[3, 4], [5, 6, 7]], [[8, 9, 10], [11, 12]])
    whole = averaged_logprobs(models, batch, 1.0)
    monkeypatch.setattr("proxlm.engine.averaging.logit_chunk", lambda *_: 4)
    assert torch.allclose(averaged_logprobs(models, batch, 1.0), whole, atol=1e-6)
