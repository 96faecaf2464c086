r"""Whether a response's mathematical answer is the right one, as the package math-verify reads and compares them.

Only ever imported in a process that can be killed (verifier.py): the package simplifies for ever on some inputs.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from itertools import product
from typing import Any

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # that its time limit is off: ours is outside
_MATHEMATICS = ("$", r"\boxed", r"\(", r"\[", r"\begin{equation}", r"\begin{align")
# The package reads 1 1/2 as 1.
_MIXED = re.compile(r"(?<![\w.,/^}\\])(\d{1,18}) {1,3}(\d{1,18})/(\d{1,18})(?![\w./])")
_BOXED = r"\boxed{"


def check(expected: str, response: str, boxed: bool) -> float | None:
    r"""1 if the response's answer equals the expected one, else 0; None if the expected one cannot be read.

    Args:
        expected: An expression, or a text with one in $…$ or \boxed{…}, or after its last ####.
        response: The response.
        boxed: Only the content of its last \boxed{…} is its answer.
    """
    right = _expected(expected)
    if not any(not isinstance(one, str) for one in right):
        return None
    answer = last_boxed(response) if boxed else response
    if answer is None:
        return 0.0
    found = _expression(answer) if boxed else _read(answer)
    return float(any(_equal(one, other) for one, other in product(right, found)))


def last_boxed(text: str) -> str | None:
    r"""What stands in the text's last \boxed{…}, which must be closed."""
    begin = text.rfind(_BOXED)
    if begin < 0:
        return None
    begin += len(_BOXED)
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


@lru_cache(maxsize=1024)
def _expected(text: str) -> list[Any]:
    return _expression(text.rpartition("####")[2])


def _expression(text: str) -> list[Any]:
    text = text.strip()
    return _read(text if any(mark in text for mark in _MATHEMATICS) else f"${text}$")


def _read(text: str) -> list[Any]:
    """What the package finds in a text: an expression and its text, or less."""
    try:
        return list(parse(_MIXED.sub(_improper, text), parsing_timeout=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # what cannot be read is no answer
        return []


def _improper(mixed: re.Match[str]) -> str:
    whole, over, under = map(int, mixed.groups())
    return f"{whole * under + over}/{under}"


def _equal(right: Any, found: Any) -> bool:
    try:
        return bool(verify(right, found, timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # what cannot be compared, of different kinds for instance, is not equal
        return False
