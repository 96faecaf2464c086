"""Numbers about a set of responses; pure functions of lists."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def calibration_error(
    probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10, lowest: float = 0.5
) -> float:
    """The expected calibration error (Naeini et al. 2015): Σ n_b / n |mean outcome − mean p| over bins.

    Args:
        probabilities: Of the answer that was given: to a question with two answers, from ½ to 1.
        outcomes: 1 where that answer was right, else 0; ½ for a tie.
        bins: B, of equal width from `lowest` to 1.
        lowest: Where the bins begin.

    Raises ValueError for no values.
    """
    if not probabilities:
        raise ValueError("no values to average")
    inside: dict[int, list[float]] = {}
    for p, outcome in zip(probabilities, outcomes, strict=True):
        number = min(bins - 1, int((p - lowest) / (1 - lowest) * bins))
        inside.setdefault(number, []).append(outcome - p)
    return math.fsum(abs(math.fsum(gaps)) for gaps in inside.values()) / len(probabilities)


def words_of(text: str) -> list[str]:
    """Words, single punctuation marks, and single Chinese, Japanese or Korean characters, in order."""
    return _WORD.findall(text)


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams / all n-grams over all sequences together (Li et al. 2016); 0 where there is none."""
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def perplexity(total_logprob: float, tokens: int) -> float:
    """exp(−total log-probability / tokens)."""
    return math.exp(-total_logprob / tokens)
