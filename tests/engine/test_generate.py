"""Rollouts of the native engine on every model type we can build small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from proxlm.config import ModelSettings, RolloutSettings
from proxlm.data.turn_end import turn_end_of
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import CachedDecoder, RecomputeDecoder, TargetDecoder, make_decoder
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.text import ResponseText, stop_position
from proxlm.models.forward import token_outputs
from proxlm.models.load import load_language_model, wrap
from proxlm.seeds import Stream
from proxlm.types import Prompt
from small_models import WORDS, tiny_model
from story_model import PRETRAINED, STORIES

TYPES = [
    "llama", "qwen2", "qwen3", "gpt2", "mistral", "gemma2", "gpt_neox", "opt", "bloom", "phi3", "granite", "cohere",
    "lstm", "t5", "mt5", "bart", "marian", "pegasus", "mbart",
]  # fmt: skip
RECURRENT = ["mamba"]


def prompts(tokenizer, count=6):
    return [Prompt(i, tuple(tokenizer(text).input_ids), text) for i, text in enumerate((WORDS * 11)[:count])]


def read(decoder, rows):
    """The states after some prompts."""
    return decoder.add(rows, room=4, prefixes=[None] * len(rows))


def run(model, asked, seed=3, step=0, **settings):
    config = RolloutSettings(**{"max_new_tokens": 16, **settings})
    return generate(NativeEngine(model, config), asked, config, seed=seed, step=step)


@pytest.mark.checklist(32)
@pytest.mark.checklist(33)
@pytest.mark.parametrize("model_type", TYPES + RECURRENT)
def test_logprobs_are_the_teacher_forced_ones(tokenizer, model_type):
    model = tiny_model(tokenizer, model_type)
    rollout = run(model, prompts(tokenizer), temperature=0.8)
    for rows in (torch.arange(6), torch.tensor([4]), torch.tensor([5, 0, 2])):
        part = rollout.sequences.select(rows)
        with torch.no_grad():
            again = token_outputs(model, part, temperature=0.8).logprobs
        offsets = rollout.sequences.response_offsets
        stored = torch.cat([rollout.logprobs[offsets[r] : offsets[r + 1]] for r in rows])
        assert torch.allclose(again, stored, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_type", TYPES + RECURRENT)
def test_greedy_equals_transformers_generate_token_for_token(tokenizer, model_type):
    model = tiny_model(tokenizer, model_type)
    rollout = run(model, prompts(tokenizer), temperature=0)
    offsets = rollout.sequences.response_offsets.tolist()
    for b, prompt in enumerate(rollout.prompts):
        wanted = model.network.generate(
            torch.tensor([prompt.input_ids]),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[0, 1 if model.encoder_decoder else len(prompt.input_ids) :]
        assert rollout.sequences.response_tokens[offsets[b] : offsets[b + 1]].tolist() == wanted.tolist()


@pytest.mark.parametrize("model_type", ["mistral", "gemma2"])
def test_sliding_windows_much_shorter_than_the_text(tokenizer, model_type):
    """Rows of other lengths leave at other times; each still sees just its own last 6 tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=6, max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(8.0)
    model = wrap(network, tokenizer, ModelSettings(device="cpu"))
    rollout = run(model, prompts(tokenizer, 30), max_new_tokens=30, temperature=2.0)
    assert len(set(rollout.sequences.response_lengths.tolist())) > 2
    with torch.no_grad():
        again = token_outputs(model, rollout.sequences, temperature=2.0).logprobs
    assert torch.allclose(again, rollout.logprobs, atol=1e-5, rtol=0)


@pytest.mark.checklist(32)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "lstm", "t5", "bart"])
def test_the_same_seed_gives_the_same_rollouts_at_any_batch_size(tokenizer, model_type):
    model, asked = tiny_model(tokenizer, model_type), prompts(tokenizer, 64)
    one, seven, all_ = (run(model, asked, batch_size=size) for size in (1, 7, 64))
    for other in (one, seven):
        assert torch.equal(other.sequences.tokens, all_.sequences.tokens)
        assert torch.equal(other.sequences.offsets, all_.sequences.offsets)
        assert torch.allclose(other.logprobs, all_.logprobs, atol=1e-5)
        assert other.texts == all_.texts
    assert len(set(all_.texts)) > 30


@pytest.mark.checklist(32)
def test_order_does_not_matter_and_seed_step_stream_and_repeat_do(tokenizer):
    model, asked = tiny_model(tokenizer), prompts(tokenizer)
    base = run(model, asked)
    assert run(model, asked[::-1]).texts[::-1] == base.texts
    assert run(model, asked, seed=4).texts != base.texts
    assert run(model, asked, step=1).texts != base.texts
    config = RolloutSettings(max_new_tokens=16)
    engine = NativeEngine(model, config)
    assert generate(engine, asked, config, seed=3, step=0, stream=Stream.EVALUATION).texts != base.texts
    twice = run(model, [asked[1], asked[0], asked[1]])
    assert twice.texts[0] == base.texts[1] != twice.texts[2]


@pytest.mark.checklist(31)
def test_eos_ends_a_response_and_stays_in_it(tokenizer):
    model = tiny_model(tokenizer)
    asked = prompts(tokenizer, 60)
    rollout = run(model, asked, max_new_tokens=40, temperature=3.0)
    eos, offsets = tokenizer.eos_token_id, rollout.sequences.response_offsets.tolist()
    tokens = rollout.sequences.response_tokens.tolist()
    assert {"eos", "length"} == set(rollout.finish)
    for b, finish in enumerate(rollout.finish):
        row = tokens[offsets[b] : offsets[b + 1]]
        assert eos not in row[:-1]
        assert (row[-1] == eos) == (finish == "eos")
        assert finish == "eos" or len(row) == 40
        assert tokenizer.eos_token not in rollout.texts[b]
    assert rollout.action_mask.all()


@pytest.mark.checklist(31)
def test_first_token_eos(tokenizer):
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.zero_()
    model.network.generation_config.eos_token_id = list(range(len(tokenizer)))
    rollout = run(model, prompts(tokenizer))
    assert rollout.finish == ["eos"] * 6
    assert rollout.sequences.response_lengths.tolist() == [1] * 6


def test_stop_texts(tokenizer):
    model, asked = tiny_model(tokenizer), prompts(tokenizer, 30)
    free = run(model, asked, max_new_tokens=30)
    stop = free.texts[0][4:6]
    stopped = run(model, asked, max_new_tokens=30, stop=[stop, "never seen"])
    assert stopped.finish[0] == "stop"
    for before, after, finish in zip(free.texts, stopped.texts, stopped.finish, strict=True):
        position = stop_position(before, [stop])
        assert finish == "stop" if position is not None else after == before
        assert after == (before if position is None else before[:position])
    # The tokens that hold the stop text are actions and are kept.
    first = stopped.sequences.response_tokens[: stopped.sequences.response_lengths[0]].tolist()
    assert stop in tokenizer.decode(first)


def test_a_stop_text_that_begins_with_the_lost_space(stories):
    """SentencePiece drops a response's leading space when it is decoded alone; the stop text has it."""
    model = load_language_model(ModelSettings(policy=str(stories), device="cpu"))
    prompt = Prompt(0, tuple(model.tokenizer("Once upon a time").input_ids), "Once upon a time")
    free = run(model, [prompt], temperature=0, max_new_tokens=12).texts[0]
    assert free.startswith(", there was")
    later = Prompt(1, tuple(model.tokenizer("Once upon a time,").input_ids), "Once upon a time,")
    stopped = run(model, [later], temperature=0, max_new_tokens=12, stop=[" there"])
    assert stopped.finish == ["stop"]
    assert stopped.texts == [""]


def test_stop_position():
    assert stop_position("abcabc", ["c", "ca"]) == 2
    assert stop_position("abc", ["d"]) is None
    assert stop_position("", ["d"]) is None


def test_repeats_of_a_prompt_and_progress(tokenizer):
    seen: list[tuple[int, int]] = []
    asked = prompts(tokenizer) * 2
    config = RolloutSettings(max_new_tokens=4, batch_size=5)
    engine = NativeEngine(tiny_model(tokenizer), config)
    generate(engine, asked, config, seed=0, step=0, on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (12, 12)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_finished_rows_leave_the_batch(tokenizer, monkeypatch, model_type):
    """The decoder's compute shrinks as responses end, and grows with nothing else."""
    sizes: list[int] = []
    model = tiny_model(tokenizer, model_type)
    check_engine(model)
    kind = type(make_decoder(model))
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda self, tokens: (sizes.append(len(tokens)), step(self, tokens))[1])
    rollout = run(model, prompts(tokenizer, 60), max_new_tokens=40, temperature=3.0)
    lengths = rollout.sequences.response_lengths
    # The start token is an encoder–decoder's first step.
    first = 0 if model_type == "t5" else 1
    assert sizes == [int((lengths > t).sum()) for t in range(first, 40)]
    assert sizes[-1] < sizes[0]


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_an_encoder_runs_once_for_a_batch_and_recomputing_agrees_with_the_cache(tokenizer, model_type):
    model, encoded = tiny_model(tokenizer, model_type), []
    model.trunk.encoder.register_forward_hook(lambda m, a, out: encoded.append(len(out.last_hidden_state)))
    rows = [[1, 5, 9], [7], [3, 4, 8, 8, 2]]
    with torch.no_grad():
        pair = (make_decoder(model), make_decoder(model))
        assert all(isinstance(decoder, TargetDecoder) and decoder.cached for decoder in pair)
        pair[1].cached = False
        assert torch.allclose(*(read(decoder, rows) for decoder in pair), atol=1e-5)
        for decoder in pair:
            decoder.step(torch.tensor([5, 6, 7]))
            decoder.keep(torch.tensor([0, 2]))
        got = [decoder.step(torch.tensor([11, 12])) for decoder in pair]
    assert torch.allclose(*got, atol=1e-5)
    assert encoded == [3, 3]
    check_engine(model)
    encoded.clear()
    run(model, prompts(tokenizer), batch_size=4)
    assert encoded == [4, 2]


def test_an_encoder_decoders_response_is_a_text_by_itself(tokenizer):
    model = tiny_model(tokenizer, "t5")
    rollout = run(model, prompts(tokenizer, 30), max_new_tokens=20)
    for text, row in zip(
        rollout.texts,
        rollout.sequences.response_tokens.split(rollout.sequences.response_lengths.tolist()),
        strict=True,
    ):
        assert text == tokenizer.decode(row, skip_special_tokens=True)
    stop = rollout.texts[0][3:5]
    stopped = run(model, prompts(tokenizer, 30), max_new_tokens=20, stop=[stop])
    assert stopped.finish[0] == "stop"
    assert stopped.texts[0] == rollout.texts[0][: stop_position(rollout.texts[0], [stop])]


def test_recomputing_decoder_agrees_with_the_cached_one(tokenizer):
    model = tiny_model(tokenizer)
    rows = [[1, 5, 9], [7], [3, 4, 8, 8, 2]]
    with torch.no_grad():
        pair = (CachedDecoder(model), RecomputeDecoder(model))
        assert torch.allclose(*(read(decoder, rows) for decoder in pair), atol=1e-5)
        for decoder in pair:
            decoder.keep(torch.tensor([0, 2]))
        got = [decoder.step(torch.tensor([11, 12])) for decoder in pair]
    assert torch.allclose(*got, atol=1e-5)
    assert isinstance(make_decoder(tiny_model(tokenizer, "gpt_neox")), CachedDecoder)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_recurrent_models_are_recomputed(tokenizer, model_type):
    assert isinstance(make_decoder(tiny_model(tokenizer, model_type)), RecomputeDecoder)


@pytest.mark.checklist(34)
def test_filters_change_the_stored_logprob(tokenizer):
    model, asked = tiny_model(tokenizer), prompts(tokenizer)
    filtered = run(model, asked, top_k=3)
    with torch.no_grad():
        plain = token_outputs(model, filtered.sequences).logprobs
    assert (filtered.logprobs >= plain - 1e-5).all()
    assert float((filtered.logprobs - plain).max()) > 0.1


def test_bfloat16_generates(tokenizer):
    model = replace(tiny_model(tokenizer), bfloat16=True)
    rollout = run(model, prompts(tokenizer))
    with torch.no_grad():
        again = token_outputs(model, rollout.sequences).logprobs
    assert rollout.logprobs.dtype == again.dtype == torch.float32
    assert torch.allclose(again, rollout.logprobs, atol=0.3)


def test_leading_space_of_sentencepiece_survives(stories):
    from proxlm.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(stories))
    ids = tokenizer("Once upon a time").input_ids
    text = ResponseText(tokenizer, turn_end_of(tokenizer))
    assert text(ids[:3], ids[3:]) == " a time"
    assert replace(text, stop=("time",))(ids[:3], [*ids[3:], tokenizer.eos_token_id]) == " a "


def test_greedy_story_is_one_that_the_model_was_trained_on(story_model):
    model = load_language_model(ModelSettings(policy=str(story_model), device="cpu"))
    rollout = run(model, [Prompt(0, (1,), "")], temperature=0, max_new_tokens=100)
    assert rollout.texts[0] in STORIES
    assert rollout.finish == ["eos"]


@pytest.mark.skipif(
    not PRETRAINED.is_dir(),
    reason="needs stories260K beside the checkout; the tiny story model has the same test without it",
)
def test_greedy_story_begins_as_published():
    model = load_language_model(ModelSettings(policy=str(PRETRAINED), device="cpu"))
    rollout = run(model, [Prompt(0, (1,), "")], temperature=0, max_new_tokens=60)
    assert rollout.texts[0].startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
