"""What is said of a tokenizer: counts by hand."""

from __future__ import annotations

import pytest

from proxlm.config import TokenizerSettings
from proxlm.data.new_tokens import new_tokens
from proxlm.data.tokenizer import train_tokenizer
from proxlm.data.tokenizer_report import tokenizer_report
from proxlm.errors import DataError


def test_the_counts_are_those_of_the_text() -> None:
    settings = TokenizerSettings(kind="characters", unknown="unk")
    tokenizer = train_tokenizer(["明月光 ab"], 40, 64, settings=settings)
    report = tokenizer_report(tokenizer, {"one": ["明月 ab", "山"], "two": ["ba"]})
    one, two = report.texts["one"], report.texts["two"]
    assert (one.documents, one.characters, one.bytes, one.words) == (2, 6, 12, 4)
    assert (one.tokens, one.unknown, one.parts, one.changed) == (6, 1, 0, 1)
    assert one.bytes_per_token == 2.0
    assert one.tokens_per_word == 1.5
    assert (two.tokens, two.unknown, two.changed) == (2, 0, 0)
    assert report.whole.tokens == 8
    assert (report.vocabulary, report.special, report.used) == (10, 4, 5)  # 光 is not used
    assert report.share_used == pytest.approx(5 / 6)
    found = report.as_json()
    assert found["texts"]["two"]["tokens_per_character"] == 1.0
    assert found["whole"]["bytes_per_token"] == 14 / 8


def test_parts_of_characters_are_counted() -> None:
    levels = train_tokenizer(["a"], 259, 64)
    assert tokenizer_report(levels, ["a明"]).whole.parts == 3
    fallback = train_tokenizer(["ab"], 270, 64, settings=TokenizerSettings(kind="characters"))
    found = tokenizer_report(fallback, ["a明,"]).whole
    assert (found.parts, found.changed, found.unknown) == (3, 0, 0)  # the comma is one byte, and whole


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "characters"])
@pytest.mark.parametrize("han", [0, 1])
def test_the_parts_of_a_long_document_have_the_tokens_of_the_whole(kind: str, han: int) -> None:
    line = "the cat's 12 mats, 春眠不觉晓，处处é\n"
    settings = TokenizerSettings(kind=kind, whole_han=han)  # type: ignore[arg-type]
    tokenizer = train_tokenizer([line] * 9, 330, 64, settings=settings)
    text = line * 1500
    whole = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert tokenizer_report(tokenizer, [text]).whole.tokens == whole


def test_longest_tokens_are_whole_ones() -> None:
    tokenizer = train_tokenizer(["moonlight moonlight sonata sonata"] * 9, 300, 64)
    assert tokenizer_report(tokenizer, ["a"], longest=1).longest == [" moonlight"]


def test_without_a_text_there_is_no_report() -> None:
    tokenizer = train_tokenizer(["a"], 259, 64)
    with pytest.raises(DataError, match="there is no text"):
        tokenizer_report(tokenizer, [""])


def test_new_tokens_are_those_that_save_the_most() -> None:
    tokenizer = train_tokenizer(["a b c d e"], 259, 64)  # all in bytes
    texts = ["moonlight moonlight cat cat cat 明明明 x"]
    assert new_tokens(tokenizer, texts, 9) == [" cat", "明"]
    assert new_tokens(tokenizer, texts * 2, 1) == [" moonlight"] or new_tokens(tokenizer, texts * 2, 2)
    assert new_tokens(tokenizer, texts, 9, han_only=True) == ["明"]
    known = train_tokenizer(["明"], 270, 64, settings=TokenizerSettings(kind="characters"))
    assert new_tokens(known, texts, 9, han_only=True) == []
