"""Responses in segments: with the same weights they are the whole response, whatever crosses a border."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from proxlm.config import EngineSettings, RolloutSettings
from proxlm.data.tokenizer import decode
from proxlm.engine import segments
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.protocol import Engine
from proxlm.engine.request import Request, SamplingParams
from proxlm.engine.segments import PartialResponse, PartialRollout, write_segments
from proxlm.engine.vllm import VLLMEngine
from proxlm.errors import ModelError
from proxlm.models.forward import token_outputs
from proxlm.models.save import save_language_model
from proxlm.types import Prompt, Rollout
from small_models import WORDS, tiny_model
from vllm_stand_in import serving

LIMIT = 12


def prompts_of(tokenizer: Any) -> list[Prompt]:
    """Each three times, of different lengths."""
    texts = [*WORDS, "the cat sat on the mat and"] * 3
    return [
        Prompt(i % len(texts) // 2, tuple(tokenizer(text).input_ids), text) for i, text in enumerate(texts)
    ]


def in_segments(
    engine: Engine, prompts: list[Prompt], settings: RolloutSettings, limits: list[int]
) -> Rollout:
    """The rollout, written up to one limit after another."""
    rollout = PartialRollout(prompts, settings, 5, [PartialResponse()] * len(prompts))
    for limit in limits:
        (rollout,) = write_segments(engine, [rollout], [limit], 3, lambda done, of: None)
    return rollout.whole(engine)


def whole(engine: Engine, prompts: list[Prompt], settings: RolloutSettings) -> Rollout:
    return generate(engine, prompts, settings, seed=3, step=5)


def same(one: Rollout, other: Rollout) -> None:
    assert one.sequences.tokens.equal(other.sequences.tokens)
    assert one.sequences.offsets.equal(other.sequences.offsets)
    assert one.finish == other.finish
    assert one.texts == other.texts
    assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert (one.sampling_mask is None) == (other.sampling_mask is None)
    if one.sampling_mask is not None and other.sampling_mask is not None:
        assert one.sampling_mask.data.equal(other.sampling_mask.data)
        assert one.sampling_mask.offsets.equal(other.sampling_mask.offsets)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "sets": {"top_p": 0.8, "keep_sampling_mask": True},
    "repetition": {"repetition_penalty": 1.7},
    "presence and frequency": {"presence_penalty": 1.5, "frequency_penalty": 2.0},
    "bad words": {"bad_words": ["the", "an"]},
    "bias of a sequence": {"logit_bias": {"70,71": 30.0, "71,70": 30.0, "70": 9.0, "72": 8.0}},
}


@pytest.mark.parametrize(
    ("family", "case"), [("llama", case) for case in CASES] + [("gpt2", "sets"), ("lstm", "repetition")]
)
def test_with_the_same_weights_segments_are_the_whole(tokenizer, family, case):
    settings = RolloutSettings(max_new_tokens=LIMIT, batch_size=5, **CASES[case])
    engine = NativeEngine(tiny_model(tokenizer, family), settings)
    prompts = prompts_of(tokenizer)
    wanted = whole(engine, prompts, settings)
    assert (wanted.sampling_mask is not None) == (case == "sets")
    for limits in ([12], [3, 6, 9, 12], list(range(1, 13))):
        same(in_segments(engine, prompts, settings, limits), wanted)


def begins_anew(request: Request) -> Request:
    """The same request without a word on what is written."""
    return replace(request, written=0)


@pytest.mark.parametrize("case", ["presence and frequency", "stop"])
def test_what_is_written_is_the_responses_own(tokenizer, monkeypatch, case):
    """The test above would see it if a segment took what is written for the prompt's."""
    settings = RolloutSettings(max_new_tokens=LIMIT, **CASES.get(case, {}))
    engine, prompts = NativeEngine(tiny_model(tokenizer), settings), prompts_of(tokenizer)
    if case == "stop":
        settings = replace(settings, stop=[crossing(tokenizer, whole(engine, prompts, settings), 6)])
    wanted = whole(engine, prompts, settings)
    same(in_segments(engine, prompts, settings, [6, 12]), wanted)
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda requests: submit(map(begins_anew, requests)))
    other = in_segments(engine, prompts, settings, [6, 12])
    assert not other.sequences.tokens.equal(wanted.sequences.tokens)


def crossing(tokenizer: Any, rollout: Rollout, border: int) -> str:
    """A text of a response that begins before a token and ends behind it."""
    offsets, tokens = rollout.sequences.response_offsets.tolist(), rollout.sequences.response_tokens.tolist()
    for begin, end in itertools.pairwise(offsets):
        text = decode(tokenizer, tokens[begin + border - 1 : begin + border + 1])
        before = decode(tokenizer, tokens[begin : begin + border])
        if end - begin > border + 2 and text.isprintable() and "�" not in text and text not in before:
            return text
    raise AssertionError("no response has such a text")


@pytest.mark.parametrize("border", [1, 5, 8])
def test_a_stop_text_over_a_border_ends_the_response(tokenizer, border):
    settings = RolloutSettings(max_new_tokens=LIMIT)
    engine, prompts = NativeEngine(tiny_model(tokenizer), settings), prompts_of(tokenizer)
    free = whole(engine, prompts, settings)
    stopped = replace(settings, stop=[crossing(tokenizer, free, border)])
    wanted = whole(engine, prompts, stopped)
    assert wanted.finish.count("stop") > free.finish.count("stop")
    same(in_segments(engine, prompts, stopped, [border, LIMIT]), wanted)


def test_ends_at_a_border(tokenizer):
    """A segment's limit is no end of the response; what has ended is not written on."""
    settings = RolloutSettings(max_new_tokens=LIMIT)
    engine, prompts = NativeEngine(tiny_model(tokenizer), settings), prompts_of(tokenizer)
    rollout = PartialRollout(prompts, settings, 5, [PartialResponse()] * len(prompts))
    (half,) = write_segments(engine, [rollout], [6], 3, lambda done, of: None)
    assert {row.finish for row in half.responses} <= {None, "eos"}
    assert all(len(row.tokens) == 6 for row in half.responses if row.finish is None)
    engine.load_weights((), 7)
    (full,) = write_segments(engine, [half], [LIMIT], 3, lambda done, of: None)
    for before, after in zip(half.responses, full.responses, strict=True):
        assert after.tokens[: len(before.tokens)] == before.tokens
        assert after.versions == [0] * len(before.tokens) + [7] * (len(after.tokens) - len(before.tokens))
        assert after.finish in ("eos", "length")
        assert before.finish is None or after == before
    assert whole(engine, prompts, settings).finish.count("length") == full.whole(engine).finish.count(
        "length"
    )
    # Nothing left: no request is made.
    assert write_segments(engine, [full], [LIMIT], 3, pytest.fail) == [full]


def test_several_rollouts_share_a_batch(tokenizer):
    """Each is what it is alone, with the random numbers of its counter, at a temperature of its own."""
    settings = RolloutSettings(max_new_tokens=LIMIT)
    engine, prompts = NativeEngine(tiny_model(tokenizer), settings), prompts_of(tokenizer)
    begun = [
        PartialRollout(prompts, replace(settings, temperature=heat), step, [PartialResponse()] * len(prompts))
        for step, heat in ((1, 1.0), (2, 0.5), (3, 1.0))
    ]
    together, seen = begun, []
    for limits in ([8, 4, 2], [12, 8, 6], [12, 12, 12]):
        together = write_segments(engine, together, limits, 3, lambda done, of: seen.append((done, of)))
        assert seen[-1][0] == seen[-1][1]
    for alone, found in zip(begun, together, strict=True):
        wanted = generate(engine, prompts, alone.settings, seed=3, step=alone.counter)
        same(found.whole(engine), wanted)


def test_a_server_sees_no_stop_text_of_two_requests_but_the_engine_does(tokenizer, tmp_path: Path):
    policy, settings = tiny_model(tokenizer), RolloutSettings(max_new_tokens=LIMIT)
    save_language_model(policy, tmp_path / "model")
    prompts = prompts_of(tokenizer)
    with serving(tmp_path / "model") as server:
        served = EngineSettings(use="vllm", url=[server.url], wait=0.0)
        engine = VLLMEngine(policy, served, tmp_path / "served", most=4)
        engine.load_weights((), 0)
        free = in_segments(engine, prompts, settings, [6, LIMIT])
        assert torch.allclose(token_outputs(policy, free.sequences, 1.0).logprobs, free.logprobs, atol=1e-4)
        stop = crossing(tokenizer, free, 6)
        found = in_segments(engine, prompts, replace(settings, stop=[stop]), [6, LIMIT])
        engine.close()
    offsets, tokens = (x.tolist() for x in (free.sequences.response_offsets, free.sequences.response_tokens))
    ended = 0
    for row, text in enumerate(free.texts):  # the same samples, up to the stop text
        own = found.sequences.select(torch.tensor([row])).response_tokens.tolist()
        assert tokens[offsets[row] : offsets[row + 1]][: len(own)] == own
        assert (found.finish[row] == "stop") == (stop in text)
        assert stop not in found.texts[row]
        ended += found.finish[row] == "stop"
    assert ended
    assert len(found.logprobs) == len(found.sequences.response_tokens)


def test_an_encoder_decoder_is_not_continued(tokenizer):
    engine = NativeEngine(tiny_model(tokenizer, "t5"), RolloutSettings())
    with pytest.raises(ModelError, match="encoder–decoder cannot be continued"):
        engine.submit([Request(0, [5, 6, 7], SamplingParams(max_new_tokens=2), written=1)])


def test_the_engine_is_left_empty_when_something_fails(tokenizer):
    settings = RolloutSettings(max_new_tokens=LIMIT)
    engine, prompts = NativeEngine(tiny_model(tokenizer), settings), prompts_of(tokenizer)

    def fails(done: int, of: int) -> None:
        raise KeyboardInterrupt

    rollout = PartialRollout(prompts, settings, 5, [PartialResponse()] * len(prompts))
    with pytest.raises(KeyboardInterrupt):
        segments.write_segments(engine, [rollout], [LIMIT], 3, fails)
    assert len(engine) == 0
