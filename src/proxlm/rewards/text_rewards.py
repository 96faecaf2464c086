"""Built-in rewards that read the text alone: its mood, form, length and words."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any, Literal

from proxlm.rewards.phrases import phrase_pattern
from proxlm.rewards.python_code import python_parse_report
from proxlm.rewards.scorer import Scorer
from proxlm.text import reason_of
from proxlm.types import Completion


def sentiment(of: Literal["response", "text"] = "response") -> Scorer:
    """VADER's compound score in [-1, 1] (Hutto & Gilbert 2014) of the response, or of prompt and response."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()

    def score(completions: list[Completion]) -> list[float]:
        texts = [c.text if of == "response" else c.prompt + c.text for c in completions]
        return [analyser.polarity_scores(text)["compound"] for text in texts]

    return score


def regex(pattern: str, full: bool = False) -> Scorer:
    """1 if the pattern is found in the response (with `full`: if it matches all of it), else 0."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f'pattern = "{pattern}": not a regular expression: {error}') from error
    match = compiled.fullmatch if full else compiled.search
    return lambda completions: [float(match(c.text) is not None) for c in completions]


def python_parses(
    min_tokens: int = 3, min_names: int = 1, max_string: int = 40, single_line: bool = True
) -> Scorer:
    """1 if prompt + response parses as Python and passes the guards of `python_parse_report`, else 0."""
    for name, value in (("min_tokens", min_tokens), ("min_names", min_names), ("max_string", max_string)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be at least 0")

    def score(completion: Completion) -> float:
        report = python_parse_report(
            completion.prompt,
            completion.text,
            min_tokens=min_tokens,
            min_names=min_names,
            max_string=max_string,
            single_line=single_line,
        )
        return float(report.parses and not report.guard)

    return lambda completions: [score(c) for c in completions]


def length(
    target: int,
    unit: Literal["tokens", "words", "characters"] = "tokens",
    tolerance: float | None = None,
) -> Scorer:
    """max(0, 1 − |length − target| / tolerance): 1 at the target, 0 at a distance of `tolerance` (None: target)."""
    if target < 1:
        raise ValueError(f"target = {target}: must be at least 1")
    width = float(target if tolerance is None else tolerance)
    if not 0 < width < float("inf"):
        raise ValueError(f"tolerance = {width:g}: must be a finite number more than 0")
    return lambda completions: [max(0.0, 1 - abs(len(_units(c, unit)) - target) / width) for c in completions]


def repetition(n: int = 3, unit: Literal["tokens", "words", "characters"] = "tokens") -> Scorer:
    """−(share of the response's n-grams that repeat an earlier one), in [-1, 0]; 0 for fewer than n units."""
    if n < 1:
        raise ValueError(f"n = {n}: must be at least 1")

    def score(completion: Completion) -> float:
        units = _units(completion, unit)
        grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    return lambda completions: [score(c) for c in completions]


def keyword(words: list[str], all: bool = False, ignore_case: bool = True) -> Scorer:
    """1 if the response contains one of the words (with `all`: all of them), else 0; "art" is found in "party"."""
    if not words or "" in words:
        raise ValueError(f"words = {words!r}: needs at least one word, and none may be empty")
    fold = str.casefold if ignore_case else str
    wanted = [fold(word) for word in words]
    needed = len(wanted) if all else 1
    return lambda completions: [
        float(sum(word in text for word in wanted) >= needed) for text in (fold(c.text) for c in completions)
    ]


def forbidden_words(words: list[str] | None = None, file: str = "", count: bool = False) -> Scorer:
    """−1 if one of the words stands in the response, else 0; with `count` −1 for each time that one does.

    A word counts as a whole, "art" not in "party"; a Chinese or Japanese one anywhere. Case does not matter, nor do
    the compatibility forms of letters (ｆｕｌｌ width).

    Args:
        words: Words or phrases.
        file: A text file with more of them, one a line; empty lines and lines that begin with # are skipped.
        count: Count every hit.
    """
    listed = [_plain(word) for word in words or []]
    if not all(listed):
        raise ValueError(f"words = {words!r}: none may be empty")
    if file:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f'file = "{file}": cannot be read: {reason_of(error)}') from error
        listed += [_plain(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not listed:
        raise ValueError("words = []: needs a word, here or in file")
    # The longest first: of two that begin alike the whole one is one hit.
    patterns = [phrase_pattern(word) for word in sorted(set(listed), key=len, reverse=True)]
    forbidden = re.compile("|".join(patterns))

    def score(text: str) -> float:
        hits = sum(1 for _ in forbidden.finditer(_plain(text)))
        return -float(hits if count else hits > 0)

    return lambda completions: [score(c.text) for c in completions]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _units(completion: Completion, unit: str) -> Any:
    """The response as a sequence of token ids, words between white space, or characters."""
    if unit == "tokens":
        return completion.tokens
    return completion.text.split() if unit == "words" else completion.text
