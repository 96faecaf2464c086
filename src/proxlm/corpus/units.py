"""Texts as units that can be counted and compared in every language, and hashes of their n-grams.

A unit is a word or, in scripts without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer), one
character.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SPACELESS = f"{HAN}\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Signs that belong to a word but are no letters for Python: accents, points, and the vowels of India's scripts.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u0652\u0900-\u0903\u093a-\u094f\u0951-\u0963\u0980-\u0dff"
_UNIT = re.compile(f"[{_SPACELESS}]|(?:[^\\W_{_SPACELESS}]|[{_MARKS}])+")
_ASCII_UNIT = re.compile("[a-z0-9]+")  # the same, for text that has nothing else
_SPACELESS_UNIT = re.compile(f"[{_SPACELESS}]")

# Of a polynomial of hashes modulo 2^64, and of splitmix64, which mixes its bits.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def units_of(text: str) -> list[str]:
    """The units of a text in order, in lower case; punctuation and white space are none."""
    return (_ASCII_UNIT if text.isascii() else _UNIT).findall(text.casefold())


def is_character(unit: str) -> bool:
    """Whether a unit is a character of a script without spaces, not a word."""
    return not unit.isascii() and _SPACELESS_UNIT.match(unit) is not None


def unit_hashes(units: Sequence[str]) -> Hashes:
    """A number for each unit: CRC-32, the same on every machine."""
    return np.fromiter(map(_hash, units), np.uint64, len(units))


@lru_cache(2**16)
def _hash(unit: str) -> int:
    return zlib.crc32(unit.encode("utf-8", "surrogatepass"))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """A 64-bit hash for each n-gram of units, in order; fewer than n units are one n-gram, and none give none."""
    if not len(hashes):
        return hashes
    n = min(n, len(hashes))
    count = len(hashes) - n + 1
    total = np.full(count, n, np.uint64)
    for place in range(n):
        total = total * _FACTOR + hashes[place : place + count] + np.uint64(1)
    total = (total ^ (total >> np.uint64(30))) * _MIX[0]
    total = (total ^ (total >> np.uint64(27))) * _MIX[1]
    return total ^ (total >> np.uint64(31))
