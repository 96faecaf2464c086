"""Numbers in text, by value: 1,234.50 = $1234.5."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

MARK = "####"
# Thousands are grouped by threes or not at all. If the text continues like the number ("1,2345", "1.2.3", "1/2"),
# there is no number, instead of a wrong one.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\d.])(?<!\d[,/])(?:(?<![\w)\]])(?P<sign>[-+−]))?(?:[$€£¥￥](?P<inner>[-−])?)?"
    rf"(?P<digits>{_DIGITS})(?P<exponent>[eE][-+]?\d{{1,3}})?(?!\d|[.,/]\d)"
)


def marked_number(text: str) -> Decimal | None:
    """The number right after the last "####", ignoring white space and a currency sign; None if there is none."""
    _, mark, tail = text.rpartition(MARK)
    found = _NUMBER.match(tail.lstrip()) if mark else None
    return _value(found) if found else None


def last_number(text: str) -> Decimal | None:
    """The last number in the text. A minus after a word or a digit is an operator: "7-2" ends in 2."""
    found = list(_NUMBER.finditer(text))
    return _value(found[-1]) if found else None


def to_number(answer: Any) -> Decimal | None:
    """A record's answer as a number: a number, a text with "####", or a text that is a number."""
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return Decimal(str(answer)) if math.isfinite(answer) else None
    if not isinstance(answer, str):
        return None
    if MARK in answer:
        return marked_number(answer)
    found = _NUMBER.fullmatch(answer.strip())
    return _value(found) if found else None


def _value(found: re.Match[str]) -> Decimal:
    negative = (found["sign"] in ("-", "−")) != (found["inner"] is not None)
    value = Decimal(found["digits"].replace(",", "") + (found["exponent"] or ""))
    return -value if negative else value
