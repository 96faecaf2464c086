"""A model is compared with transformers before it generates; its context and its numbers are watched afterwards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import proxlm
from causal_types import loaded
from proxlm.config import RolloutSettings
from proxlm.engine import decoders
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request, SampleSeed, SamplingParams
from proxlm.errors import ModelError, UserError
from proxlm.models.agreement import check_forward
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.types import Prompt, Sequences
from small_models import tiny_model

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def longrope(tokenizer: Any) -> LanguageModel:
    return loaded(tokenizer, "phi3", rope_parameters=LONGROPE, original_max_position_embeddings=32)


def sampled(model: LanguageModel, lengths: list[int], new: int) -> Any:
    settings = RolloutSettings(max_new_tokens=new)
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(3, 320, (n,), generator=generator).tolist() for n in lengths]
    prompts = [Prompt(i, tuple(row), "") for i, row in enumerate(rows)]
    return generate(NativeEngine(model, settings), prompts, settings, seed=0, step=4)


def test_it_is_compared_once_before_the_first_request(tokenizer) -> None:
    model = tiny_model(tokenizer, "olmo2")
    passes: list[int] = []
    model.trunk.register_forward_hook(lambda *_: passes.append(1))
    engine = NativeEngine(model, RolloutSettings(max_new_tokens=1))
    engine.submit([Request(0, [5, 6], SamplingParams(max_new_tokens=1))])
    first = len(passes)
    engine.reset()
    engine.submit([Request(0, [5, 6], SamplingParams(max_new_tokens=1))])
    assert (first, len(passes)) == (4, 4)  # the training pass, the prompts, two tokens
    check_engine(model)
    assert len(passes) == 4
    check_engine(replace(model, packed=True))  # another model: with transformers' own three passes as well
    assert len(passes) == 4 + 8


@pytest.mark.parametrize("wrong", ["one position further", "padding is seen"])
def test_a_cache_that_is_wrong_is_given_up(tokenizer, monkeypatch, wrong) -> None:
    model = loaded(tokenizer, "olmo2")

    class Wrong(decoders.CachedDecoder):
        def _run(self, input_ids: Tensor, positions: Tensor) -> Tensor:
            if wrong == "padding is seen":
                self.mask = torch.ones_like(self.mask)
                return super()._run(input_ids, positions)
            return super()._run(input_ids, positions + (input_ids.shape[1] == 1))

    monkeypatch.setattr(decoders, "CachedDecoder", Wrong)
    before = sampled(replace(model, cached=False), [5, 2, 9], 6)
    after = sampled(model, [5, 2, 9], 6)
    assert not model.cached
    assert isinstance(make_decoder(model), decoders.RecomputeDecoder)
    assert torch.equal(before.sequences.tokens, after.sequences.tokens)


def test_an_engine_that_is_wrong_without_a_cache_too_is_refused(tokenizer, monkeypatch) -> None:
    model = loaded(tokenizer, "mamba")
    right = decoders.RecomputeDecoder.logits
    monkeypatch.setattr(decoders.RecomputeDecoder, "logits", lambda self, states: 1.1 * right(self, states))
    with pytest.raises(ModelError, match=r"type mamba differ by [0-9.]+ between generating and training"):
        NativeEngine(model, RolloutSettings()).submit([Request(0, [5, 6], SamplingParams())])


@pytest.mark.parametrize(
    "error", [AttributeError, TypeError, RuntimeError, AssertionError, IndexError, KeyError]
)
def test_any_error_of_a_models_own_becomes_one_line_that_names_the_type(tokenizer, error) -> None:
    model = tiny_model(tokenizer, "olmo2")

    def fails(*_: Any) -> None:
        raise error("the original\nmessage")

    model.trunk.register_forward_pre_hook(fails)
    with pytest.raises(
        ModelError, match=rf"type olmo2 cannot be run .*{error.__name__}: .*the original.*message"
    ):
        check_forward(model)


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "t5"])
def test_bfloat16_is_compared_without_its_rounding(tokenizer, model_type) -> None:
    model = tiny_model(tokenizer, model_type, precision="bfloat16")
    check_engine(model)
    assert model.agrees == "engine"


@pytest.mark.parametrize("context", [4, 5, 8, 12])
@pytest.mark.parametrize("model_type", ["gpt2", "bart", "opt"])
def test_a_short_context_is_no_obstacle(tokenizer, model_type, context) -> None:
    model = loaded(tokenizer, model_type, max_position_embeddings=context)
    if not model.encoder_decoder:
        assert model.context == context
    check_engine(model)


# ---- the context


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "olmo2", "opt", "gpt_neo", "biogpt", "xglm"])
def test_the_context_is_a_limit_of_the_library(tokenizer, model_type) -> None:
    """A text of just its length is generated and trained as transformers has it; one token more is refused."""
    model = loaded(tokenizer, model_type)
    rollout = sampled(model, [60, 3], 4)
    with torch.no_grad():
        trained = token_outputs(model, rollout.sequences).logprobs
        own = model.network(rollout.sequences.tokens[None, :64]).logits[0, 59:-1].log_softmax(-1)
    assert torch.allclose(trained, rollout.logprobs, atol=1e-3)
    if int(rollout.sequences.response_lengths[0]) == 4:
        wanted = own.gather(-1, rollout.sequences.tokens[60:64, None])[:, 0]
        assert torch.allclose(wanted, rollout.logprobs[:4], atol=1e-3)
    with pytest.raises(ModelError, match=rf"{model_type}: a text .* 65 tokens long .* context of 64 tokens"):
        sampled(model, [61, 3], 4)
    row = Sequences.from_lists([[5] * 10], [[6] * 55])
    with pytest.raises(ModelError, match="65 tokens long"):
        token_outputs(model, row)


def test_the_limit_of_each_side_of_an_encoder_decoder(tokenizer) -> None:
    model = tiny_model(tokenizer, "bart")
    sampled(model, [128], 4)
    for lengths, new in (([129], 4), ([3], 128)):
        with pytest.raises(ModelError, match=r"129 tokens long does not fit the model's context of 128"):
            sampled(model, lengths, new)


def test_a_rotation_that_depends_on_the_longest_row_has_its_limit_where_that_begins(tokenizer) -> None:
    model = longrope(tokenizer)
    assert model.context == 32
    rollout = sampled(model, [22, 2], 10)
    alone = sampled(model, [22], 10)
    assert torch.allclose(alone.logprobs, rollout.logprobs[: len(alone.logprobs)], atol=1e-4)
    with pytest.raises(ModelError, match=r"32 tokens \(its original_max_position_embeddings, for longrope\)"):
        sampled(model, [23, 2], 10)
    dynamic = loaded(tokenizer, "llama", rope_parameters=DYNAMIC)
    sampled(dynamic, [54, 2], 10)
    with pytest.raises(ModelError, match=r"65 tokens long"):
        sampled(dynamic, [55, 2], 10)


def test_with_the_long_table_for_good_a_long_text_is_what_it_was_and_the_context_is_the_whole_one(
    tokenizer,
) -> None:
    """As docs/models.md has it: one function at every length, that of the first model on long texts."""
    first = longrope(tokenizer)
    whole = first.network.config.max_position_embeddings
    scale = math.sqrt(1 + math.log(whole / 32) / math.log(32))
    fixed = {**LONGROPE, "short_factor": LONGROPE["long_factor"], "attention_factor": scale}
    fixed["original_max_position_embeddings"] = whole
    model = loaded(tokenizer, "phi3", rope_parameters=fixed, original_max_position_embeddings=whole)
    model.network.load_state_dict(first.network.state_dict())
    assert model.context == whole > 40
    text = torch.randint(3, 320, (1, whole), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        long, short = model.network(input_ids=text).logits, model.network(input_ids=text[:, :20]).logits
        assert torch.equal(long, first.network(input_ids=text).logits)
        assert not torch.allclose(long[:, :20], first.network(input_ids=text[:, :20]).logits, atol=1e-2)
    assert torch.allclose(long[:, :20], short, atol=1e-4)
    rollout = sampled(model, [whole - 10, 2], 10)
    alone = sampled(model, [whole - 10], 10)
    assert torch.allclose(alone.logprobs, rollout.logprobs[: len(alone.logprobs)], atol=1e-4)


def test_the_library_says_so_wherever_a_text_comes_from(tokenizer) -> None:
    policy = longrope(tokenizer)
    with pytest.raises(UserError, match=r"32|context"):
        proxlm.generate(policy, ["The cat sat"], RolloutSettings(max_new_tokens=40))
    config = proxlm.PPOConfig(rollout=RolloutSettings(max_new_tokens=40))
    with pytest.raises(UserError, match="does not fit the model's context of 32"):
        proxlm.sample(policy, [Prompt(0, (5, 6), "")], config)


# ---- numbers that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("model_type", ["llama", "olmo2", "t5", "lstm"])
def test_weights_that_are_not_finite_are_named_when_a_model_is_loaded(tokenizer, model_type, value) -> None:
    model = tiny_model(tokenizer, model_type)
    name, weight = next((n, p) for n, p in model.network.named_parameters() if p.dim() == 2)
    with torch.no_grad():
        weight[0, 0] = value
    with pytest.raises(ModelError, match=rf": NaN or infinity in the weights {name}; take an"):
        check_forward(model)


FILTERS = [{}, {"temperature": 0.0}, {"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}]


@pytest.mark.parametrize("filters", [*FILTERS, {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "temperature": 2.0}])
@pytest.mark.parametrize("wrong", ["nan", "some nan", "inf", "all -inf"])
@pytest.mark.parametrize("vocabulary", [320, 5000])
def test_logits_that_are_not_finite_end_a_rollout_with_prompt_step_and_token(
    tokenizer, monkeypatch, filters, wrong, vocabulary
) -> None:
    """One row of three, at its third token: said by name, whatever filters are on."""
    model = tiny_model(tokenizer)
    engine = NativeEngine(model, RolloutSettings())
    params = [
        SamplingParams(max_new_tokens=8, seed=SampleSeed(step=7, prompt_id=10 + i), **filters)
        for i in range(3)
    ]
    engine.submit([Request(i, [5, 6 + i], params[i]) for i in range(3)])
    calls: list[int] = []

    def logits(states: Tensor) -> Tensor:
        calls.append(1)
        made = torch.zeros(len(states), vocabulary)
        made[:, 200:210] = torch.arange(10.0)
        made[:, 320:] = -50.0
        if len(calls) == 3:
            made[1, slice(100, 102) if wrong in ("some nan", "inf") else slice(None)] = {
                "nan": torch.nan, "some nan": torch.nan, "inf": torch.inf, "all -inf": -torch.inf,
            }[wrong]  # fmt: skip
        return made

    monkeypatch.setattr(engine._scheduler.decoder, "logits", logits)
    engine.step()
    engine.step()
    with pytest.raises(
        ModelError, match=r"infinite logits while sampling \(prompt 11, step 7, response token 3"
    ):
        engine.step()


def test_what_overflows_in_training_is_said_too(tokenizer) -> None:
    """A policy that has diverged: its weights are finite, its states are not."""
    model = tiny_model(tokenizer)
    check_engine(model)
    with torch.no_grad():
        model.trunk.norm.weight.fill_(3e38)
    with pytest.raises(ModelError, match=r"step 4, response token 1, .*weights are finite, so they overflow"):
        sampled(model, [4], 4)
