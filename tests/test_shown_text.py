"""Foreign text in messages: one line, bounded, control characters spelled out; hints for unknown names."""

import unicodedata

import pytest

from proxlm.errors import LONGEST_MESSAGE, BadRecordError, UserError
from proxlm.text import (
    did_you_mean,
    headline,
    listed,
    nearest,
    reason_of,
    shortened,
    shown,
    suggestion,
    system_reason,
    visible,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain, λ 中文 👍🏽 é", "plain, λ 中文 👍🏽 é"),
        ("two\nlines\r\n\tand a tab", r"two\nlines\r\n\tand a tab"),
        ("\x1b[31mred\x07\x00\x7f", r"\x1b[31mred\x07\x00\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("user\u202egnp.exe\u2066\u2069\u200f\u061c", r"user\u202egnp.exe\u2066\u2069\u200f\u061c"),
        ("a\u2028b\ufeff", r"a\u2028b\ufeff"),
        ("bad byte \udcff", r"bad byte \udcff"),
        ("", ""),
    ],
)
def test_control_characters_are_spelled_out(text: str, wanted: str) -> None:
    assert visible(text) == wanted


def test_no_control_character_of_unicode_is_left() -> None:
    every = "".join(map(chr, range(0x110000)))
    left = visible(every)
    assert {unicodedata.category(c) for c in left} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert not {c for c in left if unicodedata.bidirectional(c) in
                {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}}  # fmt: skip
    left.encode()


def test_line_ends_can_be_kept() -> None:
    assert visible("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
    assert shown("\x1b" * 50, 80) == r"\x1b" * 19 + r"\x1…"
    assert shown("x" * 10**7, 5) == "xxxx…"


def test_the_reason_of_an_error_is_one_line_or_its_type() -> None:
    assert reason_of(ValueError(" one\n\n  two \x1b[1m")) == r"one two \x1b[1m"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 1000))) == 300
    assert headline(RuntimeError("\n out of\tmemory \nTry this:\n - that")) == r"out of\tmemory"
    assert headline(RuntimeError()) == "RuntimeError"
    assert system_reason(PermissionError(13, "Permission denied", "/a/b")) == "Permission denied"
    assert system_reason(OSError("no number")) == "no number"


def test_lists_are_bounded() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([], "no fields") == "no fields"
    assert listed(map(str, range(1000))).endswith("18, 19 and 980 more")
    assert listed(["a\nb"]) == r"a\nb"


def test_hints_for_unknown_names() -> None:
    names = ("length", "keyword")
    assert nearest("lenght", names) == "length"
    assert nearest("zzz", names) is None
    assert did_you_mean("lenght", names) == "did you mean length?"
    assert did_you_mean("zzz", names, "the names are length, keyword") == "the names are length, keyword"
    assert suggestion("lenght", names, "there are 2") == "did you mean length? there are 2"
    assert suggestion("zzz", names, "there are 2") == "there are 2"


def test_the_message_of_a_users_error_is_one_safe_line() -> None:
    assert str(UserError("a\nb\x1b[2J: \u202ewrong")) == r"a b\x1b[2J: \u202ewrong"
    assert len(str(UserError("x" * 10**6))) == LONGEST_MESSAGE
    error = BadRecordError("f.jsonl:1: bad\tvalue", "empty")
    assert (str(error), error.kind) == (r"f.jsonl:1: bad\tvalue", "empty")
