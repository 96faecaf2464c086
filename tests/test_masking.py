"""Values from the environment are masked however they are spelled; what looks like a token is not shown."""

from __future__ import annotations

import html
import json
import random
from urllib.parse import quote

import pytest

from proxlm.errors import LONGEST_MESSAGE, UserError
from proxlm.masking import UNSHOWN, hide, holds_token, mask_error, masked, masked_tree, without_tokens
from proxlm.text import headline, in_html, on_screen, reason_of, shown

VALUES = {
    "env:PLAIN": "s3same-open-now",
    "env:QUOTED": "a\"b'c\\d&e<f>g é\x1b",
    "env:LINES": "-first line of a key\n-second  line of a key\n",
}


@pytest.fixture(autouse=True)
def hidden():
    for name, value in VALUES.items():
        hide(value, name)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "spell", [str, repr, json.dumps, lambda v: json.dumps(v, ensure_ascii=False), quote, html.escape, ascii]
)
def test_every_spelling_is_masked(name, spell):
    text = masked(f"before {spell(VALUES[name])} after")
    assert name in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    for part in ("s3same", "b'c", "first", "second"):
        assert part not in text


@pytest.mark.parametrize("show", [shown, on_screen, in_html, lambda t: reason_of(ValueError(t)),
                                  lambda t: headline(ValueError(t)), lambda t: str(UserError(t))])  # fmt: skip
def test_no_cut_leaves_a_part(show):
    for length in range(60, 320):
        for text in (
            "x" * length + VALUES["env:PLAIN"] + "y" * 500,
            "y" * 500 + VALUES["env:PLAIN"] + "x" * length,
        ):
            assert "s3" not in show(text)
            assert "-now" not in show(text)


def test_structures_are_masked_with_their_names():
    tree = {"a": [VALUES["env:PLAIN"], 1, None], f"k {VALUES['env:PLAIN']}": {"b": 1.5, "c": True}}
    assert masked_tree(tree) == {"a": ["env:PLAIN", 1, None], "k env:PLAIN": {"b": 1.5, "c": True}}


def test_an_error_is_masked_with_those_it_came_from():
    inner, outer = (
        KeyError(VALUES["env:PLAIN"]),
        ExceptionGroup("g", [ValueError(f"a {VALUES['env:PLAIN']}")]),
    )
    outer.__cause__, inner.__context__ = inner, outer
    outer.add_note(VALUES["env:PLAIN"])
    mask_error(outer)
    assert (inner.args, outer.exceptions[0].args) == (("env:PLAIN",), ("a env:PLAIN",))
    assert outer.__notes__ == ["env:PLAIN"]


def test_ordinary_words_and_short_values_are_left():
    for value in ("", "1", "true", "length", "abc12"):
        hide(value, "env:WORD")
    assert masked("1 true length abc12") == "1 true length abc12"
    hide("length7", "env:LONGER")
    assert masked("length length7") == "length env:LONGER"


@pytest.mark.parametrize("token", ["hf_AbCdEfGhIjKlMnOpQr", "sk-0123456789abcdef", "AKIAIOSFODNN7EXAMPLE",
                                   "Bearer abcd1234EFGH"])  # fmt: skip
def test_tokens_are_not_in_errors(token):
    assert holds_token(f"x {token}.")
    assert without_tokens(f"x {token}, y") == f"x {UNSHOWN}, y"
    assert token not in str(UserError(f'a.b: expected a number, got "{token}"'))


def test_a_message_is_bounded_and_keeps_both_ends():
    for length in (0, 100, 284, 285, 286, 10_000, 4_000_000):
        message = f"file.jsonl:7: {'v' * length}: save it as UTF-8"
        line = str(UserError(message))
        assert len(line) <= LONGEST_MESSAGE
        assert line.startswith("file.jsonl:7: ")
        assert line.endswith(": save it as UTF-8")
    assert len(str(UserError("\x1b" * 10**6))) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    "piece", ["-eyJ-", "-sk-", "?a.", "://a:", "Bearer ", "-----BEGIN ", "hf_", "?token="]
)
def test_looking_for_tokens_takes_no_quadratic_time(piece):
    rng = random.Random(0)
    text = "".join(rng.choice((piece, piece, "a")) for _ in range(100_000))
    assert isinstance(without_tokens(text), str)  # quadratic, it would take an hour
