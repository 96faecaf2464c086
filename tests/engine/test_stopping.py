"""When a request is finished: tokens that end a turn, stop tokens, stop texts in words, bytes and special tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from proxlm.config import RolloutSettings
from proxlm.data.tokenizer import decode, encode_continuation, train_tokenizer
from proxlm.data.turn_end import turn_end_of
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request, SamplingParams
from proxlm.engine.stopping import StopCheck
from proxlm.engine.text import ResponseText
from proxlm.types import Prompt
from small_models import TEXTS, tiny_model
from story_model import BYTES, sentencepiece_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def unigram_tokenizer() -> Any:
    """As T5's and Gemma's, with bytes for unknown characters; it puts a space before the first word of a text."""
    pieces = sorted({character for text in TEXTS for character in text if character.isascii()} - {" "})
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((name, -9.0) for name in BYTES)]
    vocabulary += [(piece, -3.0) for piece in ("▁", *pieces)] + [("▁the", -4.0), ("▁a", -4.0), ("ll", -4.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module", params=["byte-level", "byte-fallback", "unigram"])
def tokens(request: pytest.FixtureRequest) -> Any:
    """Kinds of tokenizers, with some special tokens; none has a chat template."""
    if request.param == "byte-level":
        made = train_tokenizer(TEXTS * 20, 320, 128)
    else:
        made = sentencepiece_tokenizer() if request.param == "byte-fallback" else unigram_tokenizer()
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def finished(tokenizer: Any, ids: list[int], prompt: str = "a", **params: Any) -> tuple[int, str | None, str]:
    """After how many tokens a request for these ids is finished, why, and its text."""
    model: Any = SimpleNamespace(tokenizer=tokenizer, encoder_decoder=False, turn_end=turn_end_of(tokenizer))
    before = tokenizer(prompt)["input_ids"]
    asked = SamplingParams(**{"max_new_tokens": 10_000} | params)
    check, request = StopCheck(model), Request(0, before, asked)
    count, reason = 0, None
    while reason is None and count < len(ids):
        count += 1
        reason = check.finish(request, ids[:count])
    return count, reason, asked.response_text(tokenizer, model.turn_end)(before, ids[:count])


@pytest.mark.parametrize("before", ["", "It is so. ", "处处闻啼鸟" * 9, "é😀" * 20, "한국어 텍스트 " * 8])
@pytest.mark.parametrize("stop", ["。", "\n\n", "火", "👍🏽", "é.", "###", "안녕", " ß"])
def test_a_stop_text_ends_the_response_with_its_last_token(tokens: Any, before: str, stop: str) -> None:
    ids = encode_continuation(tokens, before + stop + " and more 火")
    first = next(
        n for n in range(1, len(ids) + 1) if stop in decode(tokens, [*tokens("a")["input_ids"], *ids[:n]])
    )
    assert finished(tokens, ids, stop=(stop, "never there")) == (first, "stop", before)


@given(st.text(st.sampled_from("ab \n.é鸟啼👍😀한"), max_size=60), st.integers(0, 59), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_a_stop_text_is_found_wherever_it_is(tokens: Any, text: str, begin: int, length: int) -> None:
    stop = text[begin : begin + length]
    ids = encode_continuation(tokens, "x" + text)
    if (
        not stop
        or decode(tokens, [*tokens("a")["input_ids"], *ids])
        != decode(tokens, tokens("a")["input_ids"]) + "x" + text
    ):
        return
    _, reason, read = finished(tokens, ids, stop=(stop,))
    assert reason == "stop"
    assert read == ("x" + text)[: ("x" + text).index(stop)]


def test_bytes_of_no_character_hide_no_stop_text(tokens: Any) -> None:
    """A random policy of a byte-fallback tokenizer writes such bytes; the characters beside them are read."""
    name = "<0xE5>"
    if tokens.convert_tokens_to_ids(name) in (None, tokens.unk_token_id):
        pytest.skip("no byte tokens")
    broken = tokens.convert_tokens_to_ids(name)
    ids = [broken, *encode_continuation(tokens, "鸟啼。then"), broken]
    count, reason, text = finished(tokens, ids, stop=("。",))
    assert (reason, text) == ("stop", "�鸟啼")
    assert count == 1 + len(encode_continuation(tokens, "鸟啼。"))
    assert finished(tokens, ids)[2] == "�鸟啼。then�"
    # Cut inside a character at the limit: only that character is not shown.
    cut = encode_continuation(tokens, "闻啼鸟")[:-1]
    assert finished(tokens, cut, max_new_tokens=len(cut))[1:] == ("length", "闻啼��")


@pytest.mark.parametrize("skip", [False, True])
def test_a_stop_text_that_is_a_special_token(tokens: Any, skip: bool) -> None:
    end, other = (tokens.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>"))
    words = encode_continuation(tokens, "the moon")
    ids = [*words, end, *words]
    found = finished(tokens, ids, stop=("<|im_end|>",), skip_special_tokens=skip)
    assert found == (len(words) + 1, "stop", "the moon")
    # One of several; one with words around it; one that is not there.
    assert finished(tokens, ids, stop=("zz", "<|im_end|>"))[:2] == (len(words) + 1, "stop")
    mixed = [*words, other, *encode_continuation(tokens, "user"), *words]
    count, reason, text = finished(tokens, mixed, stop=("moon<|im_start|>user",), skip_special_tokens=skip)
    assert (reason, text) == ("stop", "the ")
    assert count == len(mixed) - len(words)
    assert finished(tokens, words, stop=("<|im_end|>",))[1] is None


def test_stop_tokens_by_number(tokens: Any) -> None:
    words = encode_continuation(tokens, "The cat sat on the mat")
    found = finished(tokens, words, stop_token_ids=(words[3], 7))
    assert found[:2] == (4, "stop")
    # Like a stop text it is no part of the text, and its token is kept.
    assert found[2] == ResponseText(tokens, turn_end_of(tokens))(tokens("a")["input_ids"], words[:3])


def test_what_ends_a_turn_comes_before_what_was_asked_for(tokens: Any) -> None:
    words = encode_continuation(tokens, "moon")
    eos = tokens.eos_token_id
    assert finished(tokens, [*words, eos], stop=(tokens.eos_token,)) == (len(words) + 1, "eos", "moon")
    assert finished(tokens, [*words, eos], stop_token_ids=(eos,), max_new_tokens=len(words) + 1)[1] == "eos"


def test_special_tokens_that_the_policy_writes_are_in_the_text(tokens: Any) -> None:
    think, done, bos, eos = (
        *(tokens.convert_tokens_to_ids(name) for name in ("<think>", "</think>")),
        tokens.bos_token_id,
        tokens.eos_token_id,
    )
    ids = [think, *encode_continuation(tokens, "hm"), done, bos, *encode_continuation(tokens, "so"), eos]
    assert finished(tokens, ids)[1:] == ("eos", "<think>hm</think>so")
    assert finished(tokens, ids, skip_special_tokens=True)[1:] == ("eos", "hmso")
    assert finished(tokens, ids, stop=("</think>",))[1:] == ("stop", "<think>hm")
    # What is hidden does not come between the parts of a stop text.
    assert finished(tokens, ids, stop=("</think>so",))[1:] == ("stop", "<think>hm")
    assert finished(tokens, ids, stop=("hmso",), skip_special_tokens=True)[1:] == ("stop", "")


def test_a_rollout_ends_at_the_templates_own_end_of_a_turn() -> None:
    tokenizer = train_tokenizer(TEXTS * 20, 320, 128)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = CHATML
    model, end = tiny_model(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.turn_end.tokens == {tokenizer.eos_token_id, end}
    model.network.generation_config.eos_token_id = [3, tokenizer.eos_token_id]
    assert model.turn_end.tokens == {tokenizer.eos_token_id, end, 3}
    config = RolloutSettings(max_new_tokens=60, temperature=3.0)
    asked = [Prompt(i, tuple(tokenizer("moon")["input_ids"]), "moon") for i in range(40)]
    rollout = generate(NativeEngine(model, config), asked, config, seed=0, step=0)
    lengths = rollout.sequences.response_lengths.tolist()
    rows = [row.tolist() for row in rollout.sequences.response_tokens.split(lengths)]
    assert sum(row[-1] == end for row in rows) >= 3
    for row, finish in zip(rows, rollout.finish, strict=True):
        assert not {*row[:-1]} & model.turn_end.tokens
        assert (finish == "eos") == (row[-1] in model.turn_end.tokens)
