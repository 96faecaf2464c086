"""Kinds of tokenizers: whole Han characters, what is unknown, round trips, the same ids in transformers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import proxlm
from proxlm.config import ModelSettings, NewModelSettings, RolloutSettings, TokenizerSettings
from proxlm.data.tokenizer import (
    decode,
    encode_continuation,
    encode_documents,
    encode_prompt,
    load_tokenizer,
    train_tokenizer,
)
from proxlm.errors import ConfigError, DataError
from small_models import TEXTS, WORDS, tiny_model

POEMS = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
]
MIXED = [*TEXTS, *POEMS] * 10
HARD = [
    "",
    "  a\n\n\tb ",
    "从前有一个小女孩，她叫莉莉。🙂👩‍👩‍👧",
    "\x00\ufeff\u2028é e\u0301",
    "<|eos|> x <0x41><|bos|><|unk|>",
    "the moon明月 in春 1987",
]
KINDS = ("bpe", "unigram", "characters")


def made(kind: str, size: int = 480, **more: Any) -> Any:
    return train_tokenizer(MIXED, size, 64, settings=TokenizerSettings(kind=kind, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("han", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_comes_back_and_transformers_gives_the_same_ids(
    kind: str, han: int, tmp_path: Any
) -> None:
    tokenizer = made(kind, whole_han=han)
    tokenizer.save_pretrained(tmp_path)
    plain, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    assert len(tokenizer) <= 480
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    for text in [*HARD, *MIXED[:7]]:
        ids = tokenizer(text)["input_ids"]
        assert plain(text)["input_ids"] == ours(text)["input_ids"] == ids
        document = encode_documents(tokenizer, [text])[0]
        assert (document[0], document[-1]) == (0, 1)
        assert not {0, 1, 2} & {*document[1:-1]}  # a special token that is spelled out is text
        assert decode(tokenizer, document[1:-1]) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = cached(kind)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert decode(tokenizer, ids) == text
    assert decode(tokenizer, encode_continuation(tokenizer, text.replace("<|", "<"))) == text.replace(
        "<|", "<"
    )


_made: dict[str, Any] = {}


def cached(kind: str) -> Any:
    if kind not in _made:
        _made[kind] = made(kind, whole_han=1)
    return _made[kind]


@pytest.mark.parametrize("unknown", ["bytes", "unk"])
@pytest.mark.parametrize("kind", [*KINDS, "wordpiece"])
def test_each_han_character_of_the_text_is_one_token(kind: str, unknown: str) -> None:
    if kind == "wordpiece" and unknown == "bytes":
        return
    tokenizer = made(kind, whole_han=1, unknown=unknown)
    for character in sorted({*re.findall("[\u4e00-\u9fff]", "".join(MIXED))}):
        for text in (character, f"明{character}月", f"a{character}b"):
            tokens = tokenizer.tokenize(text)
            assert character in tokens, (text, tokens)


def test_rarer_ones_than_the_least_count_follow_the_rule_of_unknown_ones() -> None:
    texts = ["明月明月光", "光山"]
    for unknown, spelled in (("bytes", ["<0xE5>", "<0xB1>", "<0xB1>"]), ("unk", ["山"])):
        settings = TokenizerSettings(kind="bpe", whole_han=2, unknown=unknown)  # type: ignore[arg-type]
        # Room for the three that stand there twice, and one more character that is none of them: 山 fits beside.
        room = 3 + (256 if unknown == "bytes" else 1) + 3
        with pytest.raises(ConfigError, match="vocabulary: 3 Han characters"):
            train_tokenizer(texts, room, 64, settings=settings)
        tokenizer = train_tokenizer([*texts, "，，，"], room + 1, 64, settings=settings)
        assert tokenizer.tokenize("明月光，") == ["明", "月", "光", "，"]
        ids = tokenizer("山", add_special_tokens=False)["input_ids"]
        if unknown == "bytes":
            assert tokenizer.convert_ids_to_tokens(ids) == spelled
        else:
            assert ids == [tokenizer.unk_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_without_bytes_a_model_never_writes_a_part_of_a_character(kind: str) -> None:
    tokenizer = made(kind, whole_han=1, unknown="unk")
    model = tiny_model(tokenizer)
    sampling = RolloutSettings(max_new_tokens=32, temperature=3.0)
    for done in proxlm.generate(model, [*WORDS, *POEMS], sampling, seed=1):
        assert "�" not in done.text
    assert all("�" not in decode(tokenizer, [token]) for token in range(len(tokenizer)))


def test_with_bytes_of_a_byte_level_tokenizer_it_does() -> None:
    """So that the test above can fail."""
    model = tiny_model(made("bpe", 300))
    sampling = RolloutSettings(max_new_tokens=32, temperature=3.0)
    assert any("�" in done.text for done in proxlm.generate(model, POEMS, sampling, seed=1))


def test_wordpiece_is_berts() -> None:
    tokenizer = made("wordpiece", 300)
    assert tokenizer.tokenize("the moon")[0].startswith("t")
    assert tokenizer.decode(tokenizer("the  moon\n", add_special_tokens=False)["input_ids"]) == "the moon"
    assert tokenizer("☃", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert len(tokenizer) <= 300


def test_normalisation_digits_case_and_accents() -> None:
    texts = ["Été 1987 ＡＢ été", "ete ab AB 1987"] * 5
    every = TokenizerSettings(
        kind="bpe", whole_han=1, normalise="nfkc", lowercase=True, strip_accents=True, digits=True
    )
    tokenizer = train_tokenizer(texts, 400, 64, settings=every)
    ids = tokenizer("ÉTÉ ＡＢ 1987", add_special_tokens=False)["input_ids"]
    assert decode(tokenizer, ids) == "ete ab 1987"
    assert tokenizer.tokenize("1987")[-4:] == ["1", "9", "8", "7"]
    levels = train_tokenizer(texts, 400, 64, settings=TokenizerSettings(digits=True))
    assert levels.tokenize("1987") == ["1", "9", "8", "7"]
    composed = train_tokenizer(texts, 400, 64, settings=TokenizerSettings(normalise="nfc"))
    assert composed("e\u0301")["input_ids"] == composed("é")["input_ids"]


def test_special_tokens_are_never_split_and_are_carried(tmp_path: Any) -> None:
    for kind in KINDS:
        tokenizer = made(kind, special=["<|im_start|>", "<|im_end|>"])
        assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [3, 4]
        tokenizer.save_pretrained(tmp_path / kind)
        plain = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert plain("<|im_start|>春", add_special_tokens=False)["input_ids"][0] == 3
        assert 3 in plain.all_special_ids
        assert 3 not in encode_documents(plain, ["<|im_start|>春"])[0]


def test_the_same_text_makes_the_same_tokenizer() -> None:
    for kind in (*KINDS, "wordpiece"):
        one, two = (made(kind, whole_han=1).backend_tokenizer.to_str() for _ in range(2))
        assert one == two


def test_a_text_may_be_read_once_only() -> None:
    settings = TokenizerSettings(kind="characters")
    once = train_tokenizer(iter(MIXED), 400, 64, settings=settings)
    assert once.get_vocab() == train_tokenizer(MIXED, 400, 64, settings=settings).get_vocab()


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="wordpiece has no bytes"):
        made("wordpiece", unknown="bytes")
    with pytest.raises(ConfigError, match="two characters or more"):
        made("bpe", special=["a"])
    with pytest.raises(ConfigError, match="names a token twice"):
        made("bpe", special=["<a>", "<a>"])
    with pytest.raises(DataError, match="empty"):
        train_tokenizer(["", ""], 400, 64, settings=TokenizerSettings(kind="characters"))


@pytest.mark.parametrize("kind", [*KINDS, "wordpiece"])
def test_an_encoder_decoder_and_a_new_model_take_any_kind(kind: str) -> None:
    new = NewModelSettings(
        vocabulary=420,
        hidden=32,
        layers=1,
        heads=2,
        context=64,
        tokens=TokenizerSettings(kind=kind),  # type: ignore[arg-type]
    )
    model = proxlm.new_model(MIXED, new, ModelSettings(device="cpu"))
    assert model.network.config.vocab_size == len(model.tokenizer)
    sides = train_tokenizer(MIXED, 420, 64, True, new.tokens)
    assert encode_prompt(sides, "the moon")[-1] != sides.eos_token_id
    assert sides("the moon")["input_ids"][-1] == sides.eos_token_id
