"""Words and phrases in a text: whole ones, but anywhere in scripts without spaces (Chinese, Japanese)."""

from __future__ import annotations

import re

UNSPACED = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""The characters, for a regular expression, of scripts that put no white space between words."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
# A letter or digit of another script: beside one a word is a part of another word.
_BOUND = rf"[^\W{UNSPACED}]"
_CHARACTER = re.compile(rf"[{UNSPACED}]|(?:{_BOUND})+(?:['’.,]?(?:{_BOUND})+)*")


def is_unspaced(text: str) -> bool:
    """Whether the text holds a character of a script without white space between words."""
    return _UNSPACED.search(text) is not None


def phrase_pattern(phrase: str) -> str:
    """A regular expression that finds a casefolded phrase in casefolded text, not as a part of another word."""
    parts = phrase.split()
    before = "" if _UNSPACED.match(parts[0]) else f"(?<!{_BOUND})"
    after = "" if _UNSPACED.match(parts[-1][-1]) else f"(?!{_BOUND})"
    return before + r"\s+".join(re.escape(part) for part in parts) + after


def characters(text: str) -> int:
    """The number of 字: each character of a script without spaces, and each word or number of another one."""
    return sum(1 for _ in _CHARACTER.finditer(text))
