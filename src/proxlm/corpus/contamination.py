"""Evaluation texts in training data, found by the n-grams that both have, as for GPT-3 (Brown et al. 2020, C)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from proxlm.corpus.units import Hashes, ngram_hashes, unit_hashes, units_of


class EvaluationNgrams:
    """The n-grams of evaluation texts, as sorted hashes: 8 bytes each.

    A text of fewer than n units, but at least `least`, is one n-gram by itself.

    Args:
        texts: The evaluation texts.
        n: Units of an n-gram.
        least: Texts of fewer units are left out.

    Attributes:
        texts: How many texts are in it.
        too_short: How many were left out.
    """

    def __init__(self, texts: Iterable[str], n: int, least: int) -> None:
        self.n, self.texts, self.too_short = n, 0, 0
        found: dict[int, list[Hashes]] = {}
        for text in texts:
            units = units_of(text)
            if len(units) < min(least, n):
                self.too_short += 1
                continue
            self.texts += 1
            hashes = ngram_hashes(unit_hashes(units), n)
            found.setdefault(min(n, len(units)), []).append(np.unique(hashes))
        self._by_length = {length: np.unique(np.concatenate(found[length])) for length in sorted(found)}

    @property
    def size(self) -> int:
        """How many different n-grams there are."""
        return sum(map(len, self._by_length.values()))

    def shared(self, text: str) -> tuple[float, str]:
        """The share of a text's n-grams that are here (of the length of which most are), and the first of them."""
        units = units_of(text)
        hashes = unit_hashes(units)
        share, first = 0.0, ""
        for length, known in self._by_length.items():
            if length > len(units):
                continue
            ngrams = ngram_hashes(hashes, length)
            places = np.minimum(np.searchsorted(known, ngrams), len(known) - 1)
            hits = known[places] == ngrams
            if hits.any():
                if not first:
                    at = int(np.argmax(hits))
                    first = " ".join(units[at : at + length])
                share = max(share, float(hits.mean()))
        return share, first
