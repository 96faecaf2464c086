"""Exact and near duplicates: a few bytes for each record, and then the whole corpus by sorting them.

MinHash (Broder 1997): the share of equal values of two signatures estimates the Jaccard similarity of the two sets of
n-grams. Locality-sensitive hashing finds the pairs to compare: those with an equal band of values. Memory is a few
numbers for each record; the signatures stay in a file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from proxlm.corpus.step import Numbers, Rows, Verdict
from proxlm.corpus.units import ngram_hashes, unit_hashes, units_of
from proxlm.errors import ConfigError
from proxlm.seeds import Purpose, derive_seed

Signatures = npt.NDArray[np.uint32]

_NGRAMS_AT_ONCE = 2**12
_ROWS_AT_ONCE = 2**14
# A missed pair is worse than one that is compared in vain, as every pair of a band is compared.
_WEIGHTS = (0.1, 0.9)


def text_key(text: str, ignore: str = "nothing") -> bytes:
    """8 bytes that are equal for equal texts. Two different ones of 10 million share them with probability 3e-6.

    Args:
        text: The text.
        ignore: What makes no difference: nothing; spaces; case (and spaces and punctuation).
    """
    if ignore == "spaces":
        text = " ".join(text.split())
    elif ignore == "case":
        letters = (c for c in text.casefold() if unicodedata.category(c)[0] not in "PZC")
        text = "".join(letters) or text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def first_of_equal(rows: Rows) -> Numbers:
    """For each record the first that has the same row, which may be itself."""
    if not len(rows):
        return np.zeros(0, np.int64)
    keys = np.ascontiguousarray(rows).view(np.uint64).reshape(-1)
    order = np.argsort(keys, kind="stable")
    begins = np.concatenate([[True], keys[order[1:]] != keys[order[:-1]]])
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))]
    return first


def minhasher(permutations: int, ngram: int, seed: int) -> Callable[[str], Signatures]:
    """A function from a text to its MinHash signature, by datasketch. Raises ConfigError if that is missing."""
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise ConfigError('step near needs datasketch: pip install "proxlm[corpus]"') from error
    empty = MinHash(permutations, seed=derive_seed(seed, Purpose.MINHASH) % 2**32, hashfunc=int)

    def signature(text: str) -> Signatures:
        units = units_of(text) or text.split()  # a text of signs alone is compared by these
        hashes = np.unique(ngram_hashes(unit_hashes(units), ngram) >> np.uint64(32))
        found = empty.copy()
        for start in range(0, len(hashes), _NGRAMS_AT_ONCE):
            found.update_batch(hashes[start : start + _NGRAMS_AT_ONCE].tolist())
        return np.asarray(found.hashvalues).astype(np.uint32)

    return signature


def similarity(one: Signatures, others: Signatures) -> npt.NDArray[np.float64]:
    """The estimated Jaccard similarity of one signature [values] to others [records, values]."""
    return np.mean(others == one, axis=1)


def bands_of(threshold: float, permutations: int) -> tuple[int, int]:
    """How many bands of how many values find pairs of this similarity, as datasketch computes it."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=permutations, weights=_WEIGHTS)
    return int(index.b), int(index.r)


class NearDuplicates:
    """Groups of records that are near duplicates of one another, directly or over others between them.

    Args:
        signatures: [records, values].
        threshold: The least similarity of near duplicates.
    """

    def __init__(self, signatures: Signatures, threshold: float) -> None:
        self.signatures, self.threshold = signatures, threshold
        self.parent = np.arange(len(signatures), dtype=np.int64)
        count, width = bands_of(threshold, signatures.shape[1]) if len(signatures) else (0, 1)
        for band in range(count):
            for members in self._same_band(band * width, (band + 1) * width):
                self._join_similar(members)
        for i in range(len(self.parent)):  # in order: a parent has a smaller number
            self.parent[i] = self.parent[self.parent[i]]

    @property
    def groups(self) -> Numbers:
        """For each record the first of its group."""
        return self.parent

    def first_similar(self) -> Numbers:
        """For each record the first that stays and is as similar as the threshold; its own number if it stays.

        In order, a record stays unless it is that similar to one of its group that stays. So every record that is
        left out has a near duplicate that is not, and no two that stay are near duplicates.
        """
        like = np.arange(len(self.parent), dtype=np.int64)
        order = np.argsort(self.parent, kind="stable")
        bounds = np.flatnonzero(np.diff(self.parent[order], prepend=-1, append=-1))
        for start, end in pairwise(bounds.tolist()):
            if end - start < 2:
                continue
            kept = [int(order[start])]
            for member in order[start + 1 : end].tolist():
                near = similarity(self.signatures[member], self.signatures[kept]) >= self.threshold
                if near.any():
                    like[member] = kept[int(np.argmax(near))]
                else:
                    kept.append(member)
        return like

    def _same_band(self, start: int, end: int) -> Iterator[Numbers]:
        """The records with equal values in a band, two or more, in order."""
        keys = np.empty(len(self.signatures), np.uint64)
        for at in range(0, len(keys), _ROWS_AT_ONCE):
            block = np.asarray(self.signatures[at : at + _ROWS_AT_ONCE, start:end], np.uint64)
            total = np.zeros(len(block), np.uint64)
            for column in block.T:
                total = (total ^ column) * np.uint64(0x9E3779B97F4A7C15)
                total ^= total >> np.uint64(29)
            keys[at : at + _ROWS_AT_ONCE] = total
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.concatenate([keys[order[1:]] != keys[order[:-1]], [True]])) + 1
        starts = np.concatenate([[0], ends[:-1]])
        for i in np.flatnonzero(ends - starts > 1).tolist():
            yield order[starts[i] : ends[i]]

    def _join_similar(self, members: Numbers) -> None:
        """Unite the groups of all pairs of members that are similar enough.

        Members that are united with one that has been compared are not compared with one another again.
        """
        waiting = members
        while len(waiting) > 1:
            front, waiting = [int(waiting[0])], waiting[1:]
            while front and len(waiting):
                one = front.pop()
                near = similarity(self.signatures[one], self.signatures[waiting]) >= self.threshold
                for other in waiting[near].tolist():
                    self._unite(one, other)
                    front.append(other)
                waiting = waiting[~near]

    def _root(self, i: int) -> int:
        while (above := int(self.parent[i])) != i:
            self.parent[i] = self.parent[above]
            i = above
        return i

    def _unite(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self.parent[high] = low


def near_verdict(rows: Rows, threshold: float) -> Verdict:
    """What `first_similar` leaves out. rows: signatures as bytes."""
    signatures = _signatures(rows)
    like = NearDuplicates(signatures, threshold).first_similar()

    def detail(number: int) -> str:
        return f"estimated similarity {float(np.mean(signatures[number] == signatures[like[number]])):.2f}"

    return Verdict(like, removed="near duplicate", detail=detail)


def groups_of(rows: Rows, threshold: float) -> Numbers:
    """For each record the first of its group of near duplicates. rows: signatures as bytes."""
    return NearDuplicates(_signatures(rows), threshold).groups


def _signatures(rows: Rows) -> Signatures:
    return rows.view(np.uint32)
