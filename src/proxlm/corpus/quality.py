"""What can be counted in a text, and the bounds of Gopher (Rae et al. 2021) and C4 (Raffel et al. 2020) on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from proxlm.config.corpus_steps import QualitySettings
from proxlm.corpus.units import is_character, ngram_hashes, unit_hashes, units_of

_BULLETS = ("•", "-", "*", "‣", "●", "·", "–")
_ELLIPSES = ("…", "...", "。。。")
_ENDS = tuple(".!?\"'。！？」』”’…；;")
_STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])


def rejection(text: str, bounds: QualitySettings) -> tuple[str, str]:
    """The first bound that a text does not keep, and its value in words; ("", "") if it keeps all.

    Args:
        text: The text.
        bounds: The bounds; 0 is none.
    """
    units = units_of(text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    checks = (
        *_amounts(units, bounds),
        *_of_lines(lines, bounds),
        *((("symbols", _symbols(text) / max(1, len(units)), None, bounds.max_symbols),)),
    )
    for name, value, least, most in checks:
        if least and value < least:
            return f"{name} below {least:g}", f"{value:.3g}"
        if most and value > most:
            return f"{name} above {most:g}", f"{value:.3g}"
    return _repeated(units, bounds)


Check = tuple[str, float, float | None, float | None]


def _amounts(units: Sequence[str], bounds: QualitySettings) -> list[Check]:
    words = [len(unit) for unit in units if not is_character(unit)]
    checks: list[Check] = [("units", len(units), bounds.min_units, bounds.max_units)]
    if len(words) * 2 > len(units):  # a text in a script with spaces
        mean = sum(words) / len(words)
        checks.append(("mean word length", mean, bounds.min_word_length, bounds.max_word_length))
    letters = sum(not unit.isdigit() for unit in units) / max(1, len(units))
    stop_words = len(_STOP_WORDS.intersection(units)) if bounds.min_stop_words else 0
    checks.append(("share of units with a letter", letters, bounds.min_letters, None))
    checks.append(("stop words", stop_words, bounds.min_stop_words, None))
    return checks


def _of_lines(lines: Sequence[str], bounds: QualitySettings) -> list[Check]:
    count, characters = max(1, len(lines)), max(1, sum(map(len, lines)))
    seen: set[str] = set()
    again = [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    return [
        ("bullets", sum(line.startswith(_BULLETS) for line in lines) / count, None, bounds.max_bullets),
        ("ellipses", sum(line.endswith(_ELLIPSES) for line in lines) / count, None, bounds.max_ellipses),
        ("ended lines", sum(line.endswith(_ENDS) for line in lines) / count, bounds.min_ended_lines, None),
        ("repeated lines", len(again) / count, None, bounds.max_repeated_lines),
        (
            "characters in repeated lines",
            sum(map(len, again)) / characters,
            None,
            bounds.max_repeated_line_characters,
        ),
    ]


def _symbols(text: str) -> int:
    return text.count("#") + text.count("…") + text.count("...")


def _repeated(units: Sequence[str], bounds: QualitySettings) -> tuple[str, str]:
    """The n-grams of which there are too many."""
    top = {n: bounds.max_top_ngram - 0.02 * (n - 2) for n in range(2, 5) if bounds.max_top_ngram}
    again = {
        n: bounds.max_repeated_ngrams - 0.01 * (n - 5) for n in range(5, 11) if bounds.max_repeated_ngrams
    }
    if not units:
        return "", ""
    hashes = unit_hashes(units)
    lengths = np.fromiter(map(len, units), np.int64, len(units))
    for n in sorted({*top, *again}):
        if n >= len(units):
            continue
        _, first, where, counts = np.unique(
            ngram_hashes(hashes, n), return_index=True, return_inverse=True, return_counts=True
        )
        if len(counts) == len(where):  # none occurs twice, nor does a longer one
            break
        if n in top and (share := _top_share(lengths, n, first, counts)) > (limit := max(0.0, top[n])):
            return f"most frequent {n}-gram above {limit:g}", f"{share:.3g}"
        if n in again and (share := _repeated_share(lengths, n, first, where)) > (
            limit := max(0.0, again[n])
        ):
            return f"repeated {n}-grams above {limit:g}", f"{share:.3g}"
    return "", ""


_Numbers = npt.NDArray[np.int64]


def _top_share(lengths: _Numbers, n: int, first: _Numbers, counts: _Numbers) -> float:
    """The characters in all places of the n-gram that has most of them, as a share; 0 if none occurs twice."""
    sums = np.concatenate([[0], np.cumsum(lengths)])
    taken = (sums[first + n] - sums[first]) * counts
    taken = taken[counts > 1]
    return float(taken.max() / sums[-1]) if len(taken) else 0.0


def _repeated_share(lengths: _Numbers, n: int, first: _Numbers, where: _Numbers) -> float:
    """The characters of the units in n-grams that stood before, each counted once, as a share."""
    places = np.arange(len(where))
    again = places[first[where.reshape(-1)] != places]
    marked = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(marked, again, 1)
    np.add.at(marked, again + n, -1)
    return float(lengths[np.cumsum(marked)[:-1] > 0].sum() / lengths.sum())
