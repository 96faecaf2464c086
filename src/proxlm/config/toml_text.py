"""TOML within bounds: how large a recipe may be, and how deep what it says may be nested.

Python's parser takes time quadratic in the parts of a dotted key, and settings are handled by recursion; so both
depths are looked at first, in one pass over the text.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

LARGEST_RECIPE = 2**20
"""Bytes of a recipe."""

DEEPEST = 64
"""Tables and lists in one another, and parts of a dotted key."""

# A string, closed or not (then to the end of its line or of the text), or a comment.
_QUOTED = re.compile(
    r'"""(?:[^\\"]|\\.|"(?!""))*(?:"""|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*(?:"|$)'
    r"|'[^'\n]*(?:'|$)"
    r"|#[^\n]*",
    re.DOTALL | re.MULTILINE,
)


class TooDeepError(ValueError):
    """Tables, lists or keys are nested more deeply than settings ever are."""


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML text as a table. Raises ValueError, as tomllib does; TooDeepError is one."""
    _check_depth(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TooDeepError("nested too deeply") from None


def _check_depth(text: str) -> None:
    bare = _QUOTED.sub(lambda found: "" if found[0].startswith("#") else "s", text)
    depth = 0
    for found in re.finditer(r"[\[\]{}]", bare):
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise TooDeepError(f"nested too deeply: more than {DEEPEST} lists and tables in one another")
    if "s." * DEEPEST in re.sub(r"[ \t]+", "", re.sub(r"[\w-]+", "s", bare)):
        raise TooDeepError(f"nested too deeply: a key of more than {DEEPEST} parts")
