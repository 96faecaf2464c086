r"""Numbers in text, by their exact value: 1,234.50 = $1234.5, 1/2 = 0.5 = \frac{1}{2}.

Currency and percent signs, Markdown and LaTeX around a number are not part of it: **72**, \boxed{72}, $72$, 72%.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

# A mark is four or more of them; GSM8K (Cobbe et al. 2021) writes the answer after it.
_MARK = re.compile("#{4,}")

# Thousands are grouped by threes or not at all. If the text continues like the number ("1,2345", "1.2.3", "1/2/3",
# "7^2"), there is no number, instead of a wrong one.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\d.^])(?<!\d[,/])(?:(?<![\w)\]])(?P<sign>[-+]))?(?:[$€£¥](?P<inner>-)?)?"
    rf"(?:(?P<whole>\d+) +(?=\d+ ?/ ?\d))?(?P<digits>{_DIGITS})"
    rf"(?:(?P<exponent>[eE][-+]?\d{{1,3}})|(?: ?/ ?(?P<under>{_DIGITS})))?"
    r"(?!\d|[.,_]\d| ?/ ?\d|\*{0,2}\d|\s?\^|[²³¹⁰⁴-⁹])"
)
_BEFORE = re.compile(
    r"(?:[\s*_`~:={($]|\\(?:boxed|fbox|text|textbf|mathbf|mathrm|displaystyle|left|[,;!: ([]))*"
)
_AFTER = re.compile(r"(?:[\s*_`~%$})\].。]|\\(?:right|[,;!: )\]%]))*")

_FRACTION = re.compile(r"(\d?)\\[dt]?frac(?:\{([^{}]*)\}\{([^{}]*)\}|(\d)(\d))")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_VULGAR_FRACTION = re.compile(rf"(\d?)([{''.join(_VULGAR)}])")
# Full-width forms as their ASCII twins, and other signs for minus, slash and yen.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= {ord(odd): ord(plain) for odd, plain in zip("−⁄∕￥\u3000", "-//¥ ", strict=True)}
_LATEX_GROUP = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d)")
# Python converts no longer text to an integer.
_MOST_DIGITS = 4000


def is_marked(text: str) -> bool:
    """Whether the text has a "####"."""
    return _MARK.search(text) is not None


def marked_number(text: str) -> Fraction | None:
    """The number right after the last "####" that something follows; None if there is none.

    White space, currency signs, Markdown and LaTeX may stand before it, anything behind it.
    """
    parts = [part for part in _MARK.split(text)[1:] if part.strip()]
    return _first(parts[-1]) if parts else None


def last_number(text: str) -> Fraction | None:
    """The last number in the text. A minus after a word or a digit is an operator: "7-2" ends in 2."""
    found = list(_NUMBER.finditer(_plain(text)))
    return _value(found[-1]) if found else None


def to_number(answer: Any) -> Fraction | None:
    """A record's answer as a number: a number, a text with "####", or a text that is a number."""
    if isinstance(answer, int | float | Decimal) and not isinstance(answer, bool):
        return Fraction(str(answer)) if math.isfinite(answer) else None
    if not isinstance(answer, str):
        return None
    if is_marked(answer):
        return marked_number(answer)
    text = _plain(answer)
    found = _NUMBER.match(text, _end(_BEFORE, text, 0))
    return _value(found) if found and _end(_AFTER, text, found.end()) == len(text) else None


def _first(text: str) -> Fraction | None:
    text = _plain(text)
    found = _NUMBER.match(text, _end(_BEFORE, text, 0))
    return _value(found) if found else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _plain(text: str) -> str:
    """The text with one spelling of digits, signs and fractions."""
    text = text.translate(_PLAIN).replace(r"\$", "$").replace(r"\%", "%")
    text = _LATEX_GROUP.sub(lambda found: "," if found[0][1] == "," else "", text)
    text = _FRACTION.sub(lambda f: _joined(f[1], f"{f[2] or f[4]}/{f[3] or f[5]}"), text)
    return _VULGAR_FRACTION.sub(lambda f: _joined(f[1], _VULGAR[f[2]]), text)


def _joined(whole: str, fraction: str) -> str:
    """A digit and a fraction as a mixed number: 1 1/2."""
    return f"{whole} {fraction}" if whole else fraction


def _value(found: re.Match[str]) -> Fraction | None:
    if found.end() - found.start() > _MOST_DIGITS:
        return None
    value = _read(found["digits"] + (found["exponent"] or ""))
    if found["under"]:
        under = _read(found["under"])
        if not under:
            return None
        value = value / under + int(found["whole"] or 0)
    return -value if (found["sign"] == "-") != (found["inner"] is not None) else value


def _read(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
