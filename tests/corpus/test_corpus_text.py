"""Unicode, HTML and words: what becomes of a text, and that hostile text costs no time."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxlm.corpus.html_text import html_to_text, looks_like_html
from proxlm.corpus.languages import UNKNOWN, language_of
from proxlm.corpus.unicode_text import normalised
from proxlm.corpus.units import ngram_hashes, unit_hashes, units_of
from proxlm.corpus.words import (
    STOP_WORDS,
    chinese_converter,
    lemmatiser,
    segmenter,
    stemmer,
    stop_word_remover,
)
from proxlm.errors import ConfigError

ODD = st.text(
    st.sampled_from(
        "a e\u0301\u0301\u200d\u200b\u202e\u061c\u0628\ufb01Å①\r\n\x0b\u2028 \t\x00\x1b中🙂\ufe0f"
    )
)


@given(ODD, st.sampled_from(["NFC", "NFKC", "none"]), st.booleans(), st.booleans())
def test_unicode_is_idempotent_and_leaves_no_control_character(text, form, controls, spaces):
    once = normalised(text, form, controls, spaces)
    assert normalised(once, form, controls, spaces) == once
    if form != "none":
        assert unicodedata.is_normalized(form, once)
    if controls:
        assert {c for c in once if unicodedata.category(c) == "Cc"} <= {"\n", "\t"}
        assert not set(once) & set("\u202e\u200b\u061c\u2028")


def test_unicode_by_hand():
    assert normalised("e\u0301a\r\nb\rc\u2028d\x00\u202ee\ufeff") == "éa\nb\nc\nde"
    assert normalised("ﬁ ①，", "NFKC") == "fi 1,"
    assert normalised("ﬁ ①，", "NFC") == "ﬁ ①，"
    assert normalised("a  \n\n\n\nb \n", spaces=True) == "a\n\nb"
    family = "👨\u200d👩\u200d👧"
    assert normalised(family) == family  # joiners of an emoji stay
    assert normalised("\x1b[31m", controls=False) == "\x1b[31m"


def test_html_by_hand():
    page = (
        "<!DOCTYPE html><html><head><style>p{}</style><script>if (a<b) x('</p>')</script></head><body>"
        "<h1>Fish &amp; chips</h1>\n<p>One <b>two</b>\n  three<br>four</p><!-- <p>no</p> -->"
        "<pre>a\n  b</pre><ul><li>x</li><li>y</li></ul><a title='1 > 0' href=\"z>q\">link</a> 2 < 3&nbsp;&lt;p&gt;"
    )
    assert html_to_text(page) == "Fish & chips\n\nOne two three\nfour\n\na\n  b\n\nx\n\ny\n\nlink 2 < 3 <p>"
    assert not looks_like_html("if a < b and c > d: a<T>(x) &amp; <foo>")
    assert looks_like_html("see <a href='x'>this</a>")


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<",
        "<a ",
        "<![CDATA[",
        "&#",
        "<div>",
        "<a b='",
        "</",
        "<?",
        "<script>",
        "<p a='>",
        "<a b=\"'>",
        "<pre> ",
    ],
)
def test_hostile_html_takes_time_in_proportion_to_its_length(piece):
    text = piece * (200_000 // len(piece))
    begun = time.process_time()
    looks_like_html(text)
    html_to_text(text)
    # Quadratic time is minutes here: Python's own parser needs 11 s for 80,000 characters of the first.
    assert time.process_time() - begun < 5


def test_units_are_words_and_chinese_characters():
    assert units_of("Don't panic, 你好world 42!") == ["don", "t", "panic", "你", "好", "world", "42"]
    assert units_of("हिन्दी में") == ["हिन्दी", "में"]
    assert len(ngram_hashes(unit_hashes(["a", "b", "c"]), 2)) == 2
    assert len(ngram_hashes(unit_hashes(["a"]), 5)) == 1
    assert len(ngram_hashes(unit_hashes([]), 5)) == 0
    one, other = (ngram_hashes(unit_hashes(units), 2) for units in (["a", "b"], ["b", "a"]))
    assert one[0] != other[0]


def test_words_change_and_the_rest_stays():
    assert chinese_converter("t2s")("漢字, abc") == "汉字, abc"
    assert stop_word_remover(STOP_WORDS["english"])("The cat sat on THE mat.") == "cat sat mat."
    assert stemmer("english")("Running, quickly!") == "run, quick!"
    assert lemmatiser("english")("Mice were better.") == "mouse be good."
    with pytest.raises(ConfigError, match="no stemmer for 'klingon'"):
        stemmer("klingon")
    with pytest.raises(ConfigError, match="simplemma knows no 'klingon'"):
        lemmatiser("klingon")


def test_segmenting_also_of_a_run_of_one_character_in_bounded_time():
    segment = segmenter()
    assert segment("我来到北京清华大学 OK\n\nno") == "我 来到 北京 清华大学 OK\n\nno"
    begun = time.process_time()
    segment("我" * 10_000)
    assert time.process_time() - begun < 20  # in one piece, quadratic: a minute and more


def test_languages():
    find = language_of()
    assert find("The quick brown fox jumps over the lazy dog near the river bank.")[0] == "en"
    assert find("今天天气很好，我们一起去公园里散步吧，然后再去吃晚饭。")[0] == "zh"
    assert find("short") == (UNKNOWN, 0.0)
    assert language_of(["de", "fr"])("Le petit chat est assis devant la porte de la maison.")[0] == "fr"
    with pytest.raises(ConfigError, match="knows no 'xx'"):
        language_of(["xx"])
