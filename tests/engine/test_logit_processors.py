"""Penalties, biases and bad words: transformers' own processors are the oracle, row by row."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from proxlm.config import PPOConfig, RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.logit_processors import LogitProcessors, spellings
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import SamplingParams
from proxlm.errors import ConfigError, ModelError
from proxlm.jobs.generate import generate as generate_job
from proxlm.jobs.loop_parts import sample
from proxlm.types import Prompt
from small_models import WORDS, tiny_model

TYPES = ["llama", "gpt2", "mamba", "lstm", "t5", "bart"]


def prompts(tokenizer):
    return [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(WORDS)]


def run(model, asked, **settings):
    config = RolloutSettings(**{"max_new_tokens": 16, **settings})
    return generate(NativeEngine(model, config), asked, config, seed=3, step=0)


def responses(rollout):
    return [
        row.tolist()
        for row in rollout.sequences.response_tokens.split(rollout.sequences.response_lengths.tolist())
    ]


def frequent(model, asked):
    """The tokens and pairs of tokens that the model writes most, EOS not among them."""
    rows = [[t for t in row if t != model.tokenizer.eos_token_id] for row in responses(run(model, asked))]
    single = [t for row in rows for t in row]
    pairs = [pair for row in rows for pair in pairwise(row)]
    return max(set(single), key=single.count), max(set(pairs), key=pairs.count)


@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_equals_transformers_generate_with_its_processors(tokenizer, model_type):
    model = tiny_model(tokenizer, model_type)
    asked = prompts(tokenizer)
    plain = responses(run(model, asked, temperature=0))
    common, pair = frequent(model, asked)
    bias = {str(common): 1.5, f"{pair[0]},{pair[1]}": -30.0}
    word = tokenizer.decode([plain[0][0]])
    settings = {"repetition_penalty": 1.3, "bad_words": [word], "logit_bias": bias}
    found = responses(run(model, asked, temperature=0, **settings))
    assert found != plain
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor({(common,): 1.5, pair: -30.0}),
            RepetitionPenaltyLogitsProcessor(1.3),
            NoBadWordsLogitsProcessor([list(ids) for ids in spellings(tokenizer, word)]),
        ]
    )
    for prompt, row in zip(asked, found, strict=True):
        wanted = model.network.generate(
            torch.tensor([prompt.input_ids]),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=processors,
        )[0, 1 if model.encoder_decoder else len(prompt.input_ids) :]
        assert row == wanted.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.7},
        {"bad_words": ["the", "moon", "a small dog"]},
        {"logit_bias": {"5": 2.0, "9,5": -7.5, "7,9,5": 3.0}},
        {"repetition_penalty": 2.0, "bad_words": ["cat"], "logit_bias": {"11": 4.0}},
    ],
)
def test_the_logits_are_those_of_transformers_processors(tokenizer, settings):
    """Random texts in which the sequences do stand; one after another and after each token."""
    model = tiny_model(tokenizer)
    params = SamplingParams(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    )
    oracle = LogitsProcessorList()
    if "logit_bias" in settings:
        oracle.append(
            SequenceBiasLogitsProcessor(
                {tuple(map(int, key.split(","))): v for key, v in settings["logit_bias"].items()}
            )
        )
    if "repetition_penalty" in settings:
        oracle.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "bad_words" in settings:
        oracle.append(
            NoBadWordsLogitsProcessor(
                [list(ids) for word in settings["bad_words"] for ids in spellings(tokenizer, word)]
            )
        )
    draw = torch.Generator().manual_seed(1)
    words = [7, 9, 5, *spellings(tokenizer, "a small dog")[0]]
    for _ in range(20):
        text = [words[int(i)] for i in torch.randint(len(words), (14,), generator=draw)]
        processor = LogitProcessors(model).of(text[:6], params)
        for end in range(6, len(text)):
            logits = torch.randn(len(tokenizer), generator=draw) * 3
            wanted = oracle(torch.tensor([text[:end]]), logits[None].clone())[0]
            processor(logits, text[6:end])
            assert torch.allclose(logits, wanted, rtol=0, atol=2e-6)


def test_presence_and_frequency_by_hand(tokenizer):
    model = tiny_model(tokenizer)
    processor = LogitProcessors(model).of(
        [4, 5], SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    )
    logits = torch.zeros(len(tokenizer))
    processor(logits, [5, 6, 5, 5])
    # The prompt does not count; 5 was written three times, 6 once.
    assert logits[[4, 5, 6]].tolist() == [0.0, -1.25, -0.75]
    assert float(logits.sum()) == -2.0


def test_logprobs_are_those_of_the_distribution_that_was_sampled(tokenizer):
    """And rows with and without changes share a batch."""
    model = tiny_model(tokenizer)
    asked = prompts(tokenizer)
    common, _ = frequent(model, asked)
    rollout = run(model, asked, temperature=0.7, logit_bias={str(common): -math.log(4)})
    logprobs = rollout.logprobs.split(rollout.sequences.response_lengths.tolist())
    for prompt, row, found in zip(asked, responses(rollout), logprobs, strict=True):
        with torch.no_grad():
            logits = model.network(torch.tensor([[*prompt.input_ids, *row]])).logits[
                0, len(prompt.input_ids) - 1 : -1
            ]
        logits[:, common] -= math.log(4)
        wanted = torch.log_softmax(logits / 0.7, -1)[torch.arange(len(row)), torch.tensor(row)]
        assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "t5", "mamba"])
def test_what_is_written_depends_neither_on_the_batch_nor_on_its_order(tokenizer, model_type):
    model = tiny_model(tokenizer, model_type)
    asked = prompts(tokenizer)
    settings = {
        "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2,
        "bad_words": ["cat", " on the"], "logit_bias": {"moon": 2.0, "9": -1.0},
    }  # fmt: skip
    whole = responses(run(model, asked, batch_size=64, **settings))
    assert whole == responses(run(model, asked, batch_size=2, **settings))
    assert whole[::-1] == responses(run(model, asked[::-1], batch_size=3, **settings))
    assert whole != responses(run(model, asked, batch_size=64))


def test_bad_words_are_never_written(tokenizer):
    model = tiny_model(tokenizer)
    asked = prompts(tokenizer) * 5
    plain = run(model, asked, max_new_tokens=30)
    words = ["The", "dog", "a"]
    forbidden = {ids for word in words for ids in spellings(tokenizer, word)}
    assert any(
        ids in {*zip(row, strict=True)} for row in responses(plain) for ids in forbidden if len(ids) == 1
    )
    for row in responses(run(model, asked, max_new_tokens=30, bad_words=words)):
        for ids in forbidden:
            assert all(tuple(row[i : i + len(ids)]) != ids for i in range(len(row)))


def test_a_text_is_spelled_as_it_is_at_the_beginning_and_behind_others(tokenizer):
    alone, after = tokenizer("moon")["input_ids"][1:], tokenizer("The moon")["input_ids"]
    found = spellings(tokenizer, "moon")
    assert tuple(alone) in found
    assert any(tuple(after[-len(ids) :]) == ids for ids in found)
    assert spellings(tokenizer, "") == []


def test_what_cannot_be_is_refused_before_the_weights(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    size = len(tokenizer)
    for settings, text in (
        ({"logit_bias": {f"3,{size}": 1.0}}, f"rollout.logit_bias: {size} is not a token"),
        ({"logit_bias": {"": 1.0}}, "rollout.logit_bias"),
        ({"bad_words": [""]}, "rollout.bad_words"),
        ({"repetition_penalty": 0.0}, "rollout.repetition_penalty = 0.0: must be more than 0"),
        ({"logit_bias": {"3": math.inf}}, "must be a finite number"),
    ):
        with pytest.raises(ConfigError, match="rollout") as error:
            generate_job(model, ["The cat"], RolloutSettings(**settings))
        assert text in str(error.value)
    with pytest.raises(ModelError, match="no token is left"):
        run(model, prompts(tokenizer), logit_bias={str(token): -math.inf for token in range(size)})


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"bad_words": ["cat"]},
        {"logit_bias": {"3": 1.0}},
    ],
)
def test_no_policy_learns_from_what_is_no_sample_of_it(tokenizer, settings):
    config = PPOConfig(rollout=RolloutSettings(**settings))
    (name,) = settings
    assert [key for key, _ in config.problems() if key.startswith("rollout")] == [f"rollout.{name}"]
    with pytest.raises(ConfigError, match=rf"rollout\.{name}: .*ratio"):
        sample(tiny_model(tokenizer), prompts(tokenizer), config)
