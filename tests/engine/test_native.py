"""The engine's promises: requests join, finish and differ without changing each other; weights, reset, prefixes."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch

from proxlm.config import RolloutSettings
from proxlm.engine.generate import generate
from proxlm.engine.kv_cache import KVCache
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request, RequestOutput, SampleSeed, SamplingParams
from proxlm.errors import ModelError
from proxlm.models.language_model import LanguageModel
from proxlm.types import Prompt
from small_models import tiny_model

pytestmark = pytest.mark.checklist(32)


def requests(count: int = 11) -> list[Request]:
    """Prompts and limits of several lengths."""
    return [
        Request(
            i,
            [1 + i, *range(2, 2 + i % 4)],
            SamplingParams(temperature=1.5, max_new_tokens=3 + i, seed=SampleSeed(5, prompt_id=i)),
        )
        for i in range(count)
    ]


def finish_all(engine: NativeEngine) -> dict[int, RequestOutput]:
    outputs = {}
    while len(engine):
        outputs |= {output.id: output for output in engine.step()}
    return outputs


def outputs_of(model: LanguageModel, asked: list[Request], batch: int = 64) -> dict[int, RequestOutput]:
    engine = NativeEngine(model, RolloutSettings(batch_size=batch))
    engine.submit(asked)
    return finish_all(engine)


def expect_same(ours: dict[int, RequestOutput], theirs: dict[int, RequestOutput]) -> None:
    assert ours.keys() == theirs.keys()
    for key, output in ours.items():
        assert output.tokens == theirs[key].tokens
        assert output.finish == theirs[key].finish
        assert output.logprobs == pytest.approx(theirs[key].logprobs, abs=1e-5)


def without_eos(tokenizer) -> LanguageModel:
    """A model whose responses end at their limits only."""
    model = tiny_model(copy.deepcopy(tokenizer))
    model.network.generation_config.eos_token_id = model.tokenizer.eos_token_id = None
    return model


def test_when_a_request_joins_does_not_change_its_output(tokenizer) -> None:
    model, asked = tiny_model(tokenizer), requests()
    alone = outputs_of(model, asked, batch=1)
    for batch, late in ((64, 11), (4, 11), (4, 5), (64, 5), (3, 1)):
        engine = NativeEngine(model, RolloutSettings(batch_size=batch))
        engine.submit(asked[:late])
        outputs = {output.id: output for _ in range(2) for output in engine.step()}
        engine.submit(asked[late:])
        expect_same(outputs | finish_all(engine), alone)


def test_a_freed_slot_is_taken_at_once(tokenizer) -> None:
    """Sixteen requests of different lengths in four slots: hardly more steps than tokens / slots."""
    model, sizes = without_eos(tokenizer), []
    model.trunk.embed_tokens.register_forward_hook(lambda module, arguments, out: sizes.append(len(out)))
    engine, steps, outputs = NativeEngine(model, RolloutSettings(batch_size=4)), 0, []
    engine.submit(
        Request(i, [1, 2], SamplingParams(max_new_tokens=4 if i % 4 else 28, seed=SampleSeed(0, prompt_id=i)))
        for i in range(16)
    )
    while len(engine):
        outputs += engine.step()
        steps += 1
    assert sum(len(output.tokens) for output in outputs) == 4 * 28 + 12 * 4
    assert steps <= 28 + 28  # in batches one after another it would be 4 · 28
    assert max(sizes) <= 4


@pytest.mark.checklist(34)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "lstm", "t5"])
def test_requests_with_their_own_parameters_get_together_what_each_gets_alone(tokenizer, model_type) -> None:
    model = tiny_model(tokenizer, model_type)
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0.0, max_new_tokens=9),
        SamplingParams(temperature=2.0, top_k=7, max_new_tokens=14, stop=tuple("aeionrst")),
        SamplingParams(temperature=0.8, top_p=0.9, max_new_tokens=5, stop=("a", "t ", "e")),
        SamplingParams(temperature=1.3, min_p=0.02, max_new_tokens=20, logprobs=False),
    ]
    asked = [
        Request(
            i,
            [7 + i, *range(9, 9 + i % 5)],
            replace(
                kinds[i % 5],
                max_new_tokens=min(24, kinds[i % 5].max_new_tokens),
                seed=SampleSeed(i % 3, i % 2, i % 7, prompt_id=i, sample=i % 4),
            ),
        )
        for i in range(25)
    ]
    alone = {request.id: outputs_of(model, [request])[request.id] for request in asked}
    for batch in (64, 6):
        together = outputs_of(model, asked, batch)
        expect_same(together, alone)
    assert {output.finish for output in together.values()} >= {"stop", "length"}
    for request in asked:
        output = together[request.id]
        assert len(output.tokens) <= request.params.max_new_tokens
        assert len(output.logprobs) == (len(output.tokens) if request.params.logprobs else 0)
        if output.finish == "stop":
            text = tokenizer.decode(output.tokens)
            assert any(stop in text for stop in request.params.stop)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "lstm"])
def test_a_continued_request_gets_what_reading_everything_gives(tokenizer, model_type) -> None:
    model = tiny_model(tokenizer, model_type)
    engine = NativeEngine(model, RolloutSettings())
    params = SamplingParams(max_new_tokens=6, temperature=1.5)
    engine.submit([Request(0, [1, 5, 9], params, keep_prefix=True), Request(1, [4, 4], params)])
    first = finish_all(engine)
    assert first[1].prefix is None
    assert (first[0].prefix is not None) == (model_type != "lstm")
    prompt = [1, 5, 9, *first[0].tokens, 30, 31]
    later = replace(params, seed=SampleSeed(position=len(first[0].tokens)))
    engine.submit([Request(2, prompt, later, prefix=first[0].prefix)])
    expect_same(finish_all(engine), outputs_of(model, [Request(2, prompt, later)]))


def test_load_weights_copies_by_name_and_nothing_stale_is_used(tokenizer) -> None:
    model, other = tiny_model(tokenizer), tiny_model(tokenizer, seed=1)
    engine, asked = NativeEngine(model, RolloutSettings()), requests()
    assert engine.version == 0
    engine.submit(asked)
    before = finish_all(engine)  # the decoder and its prepared copies are still there
    engine.load_weights(other.network.named_parameters(), 3)
    assert engine.version == 3
    engine.submit(asked)
    after = finish_all(engine)
    expect_same(after, outputs_of(other, asked))
    assert any(after[i].tokens != before[i].tokens for i in before)
    for p, q in zip(model.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.data_ptr() != q.data_ptr()


def test_weights_that_changed_in_place_are_used_after_load_weights(tokenizer) -> None:
    model, asked = tiny_model(tokenizer), requests()
    engine = NativeEngine(model, RolloutSettings())
    engine.submit(asked)
    finish_all(engine)
    with torch.no_grad():
        for p in model.network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    engine.load_weights(model.trainable(), 1)
    engine.submit(asked)
    expect_same(finish_all(engine), outputs_of(model, asked))


def test_a_tied_head_may_be_named(tokenizer) -> None:
    """The head's weights are the embeddings', which PyTorch names once; a sender may name them twice."""
    model = tiny_model(tokenizer)
    name = "lm_head.weight"
    assert name not in dict(model.network.named_parameters())
    NativeEngine(model, RolloutSettings()).load_weights([(name, torch.ones(320, 32))], 1)
    assert bool((model.network.get_input_embeddings().weight == 1).all())


def test_load_weights_refuses_what_does_not_fit(tokenizer) -> None:
    model = tiny_model(tokenizer)
    engine = NativeEngine(model, RolloutSettings())
    with pytest.raises(ModelError, match=r"no weights of the name model\.nothing"):
        engine.load_weights([("model.nothing", torch.zeros(1))], 1)
    name, weight = next(iter(model.network.named_parameters()))
    with pytest.raises(ModelError, match=r"has the shape \[320, 32\], not \[2, 32\]"):
        engine.load_weights([(name, weight[:2])], 1)
    assert engine.version == 0
    engine.submit(requests())
    with pytest.raises(RuntimeError, match="11 requests are unfinished"):
        engine.load_weights([], 1)
    engine.reset()
    engine.load_weights([], 1)
    assert engine.version == 1


def test_reset_drops_requests_and_frees_memory(tokenizer) -> None:
    model, asked = tiny_model(tokenizer), requests()
    engine = NativeEngine(model, RolloutSettings(batch_size=4))
    assert engine.step() == []
    engine.submit(asked)
    engine.step()
    assert len(engine) == 11
    engine.reset()
    assert len(engine) == 0
    assert engine.step() == []
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is KVCache]
    engine.submit(asked)
    expect_same(finish_all(engine), outputs_of(model, asked))


def test_a_rollout_leaves_its_engine_empty_even_after_an_error(tokenizer) -> None:
    settings = RolloutSettings(max_new_tokens=8)
    engine = NativeEngine(tiny_model(tokenizer), settings)
    prompts = [Prompt(i, (1, 2 + i), "") for i in range(5)]

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(engine, prompts, settings, seed=0, step=0, on_progress=interrupt)
    gc.collect()
    assert len(engine) == 0
    assert not [thing for thing in gc.get_objects() if type(thing) is KVCache]
    engine.load_weights([], 4)
    rollout = generate(engine, prompts, settings, seed=0, step=0)
    assert (rollout.policy_versions == 4).all()
    whole = generate(NativeEngine(engine.model, settings), prompts, settings, seed=0, step=0)
    assert torch.equal(rollout.sequences.tokens, whole.sequences.tokens)
    assert torch.equal(rollout.logprobs, whole.logprobs)
