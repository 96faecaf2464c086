"""Exact and near duplicates against the exact Jaccard similarity of all pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from proxlm.corpus.duplicates import (
    NearDuplicates,
    first_of_equal,
    minhasher,
    near_verdict,
    similarity,
    text_key,
)
from proxlm.corpus.units import units_of

WORDS = [f"w{i}" for i in range(2000)]
CHARACTERS = [chr(0x4E00 + i) for i in range(1500)]


def corpus(letters, join, families=50, length=80, seed=0):
    """Families of a text and its copies with 0 to 25 changed places, in random order."""
    chance = random.Random(seed)
    texts = []
    for _ in range(families):
        base = [chance.choice(letters) for _ in range(length)]
        for _ in range(5):
            copy = list(base)
            for place in chance.sample(range(length), chance.randrange(0, 6)):
                copy[place] = chance.choice(letters)
            texts.append(join.join(copy))
    chance.shuffle(texts)
    return texts


def ngrams(text, n):
    units = units_of(text)
    return {tuple(units[i : i + n]) for i in range(max(1, len(units) - n + 1))}


def exact_similarities(texts, n):
    sets = [ngrams(text, n) for text in texts]
    return np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])


@pytest.mark.parametrize(("letters", "join"), [(WORDS, " "), (CHARACTERS, "")])
def test_recall_and_precision_against_exact_jaccard(letters, join):
    """Of pairs clearly above the threshold all but 2% are found, and none clearly below it is."""
    texts, n, threshold = corpus(letters, join), 3, 0.7
    exact = exact_similarities(texts, n)
    signature = minhasher(128, n, 0)
    rows = np.stack([signature(text) for text in texts])
    estimated = np.array([similarity(row, rows) for row in rows])
    assert np.abs(estimated - exact).mean() < 0.02
    assert np.abs(estimated - exact).max() < 0.25  # six deviations of 0.5 / √128
    groups = NearDuplicates(rows, threshold).groups
    together = groups[:, None] == groups[None, :]
    pairs = ~np.eye(len(texts), dtype=bool)
    surely = pairs & (exact > threshold + 0.1)
    assert surely.sum() > 150
    assert together[surely].mean() > 0.98
    # A group also joins what is similar over others; no two families have anything to do with one another.
    assert not together[exact < 0.05].any()


def test_what_stays_and_what_does_not():
    texts = corpus(WORDS, " ", families=40, seed=1)
    rows = np.stack([minhasher(128, 3, 0)(text) for text in texts])
    like = NearDuplicates(rows, 0.7).first_similar()
    kept = np.flatnonzero(like == np.arange(len(texts)))
    assert 40 <= len(kept) < 120
    for i in np.flatnonzero(like != np.arange(len(texts))):
        assert like[i] < i
        assert like[like[i]] == like[i]  # it stays for one that stays
        assert similarity(rows[i], rows[like[i]][None])[0] >= 0.7
    again = NearDuplicates(rows[kept], 0.7).first_similar()
    assert (again == np.arange(len(kept))).all()  # doing it again leaves nothing out
    as_bytes = np.ascontiguousarray(rows).view(np.uint8).reshape(len(texts), -1)
    assert (near_verdict(as_bytes, 0.7).like == like).all()


def test_a_chain_is_one_group_but_its_ends_both_stay():
    a = [f"w{i}" for i in range(60)]
    texts = [" ".join([*a[:-k], *(f"x{i}" for i in range(k))] if k else a) for k in range(0, 33, 8)]
    rows = np.stack([minhasher(512, 1, 0)(text) for text in texts])
    found = NearDuplicates(rows, 0.7)
    assert set(found.groups) == {0}
    assert list(found.first_similar()) == [0, 0, 2, 2, 4]


def test_exact_duplicates_keep_the_first():
    keys = np.frombuffer(b"".join(text_key(t) for t in ["a", "b", "a", "c", "b", "a"]), np.uint8).reshape(
        -1, 8
    )
    assert list(first_of_equal(keys)) == [0, 1, 0, 3, 1, 0]
    assert text_key(" a  b\n", "spaces") == text_key("a b", "spaces") != text_key("a  b")
    assert text_key("Hello, World!", "case") == text_key("hello world", "case")
    assert text_key("你好。", "case") == text_key("你好！", "case")
    assert text_key("!!", "case") != text_key("??", "case")  # of signs alone nothing else would be left
    assert not len(first_of_equal(np.zeros((0, 8), np.uint8)))


def test_signatures_depend_on_the_seed_and_nothing_else():
    text = " ".join(WORDS[:50])
    assert (minhasher(64, 5, 1)(text) == minhasher(64, 5, 1)(text)).all()
    assert (minhasher(64, 5, 1)(text) != minhasher(64, 5, 2)(text)).any()
    assert minhasher(64, 5, 1)("").shape == (64,)
    assert (minhasher(64, 5, 1)("!!!") != minhasher(64, 5, 1)("???")).any()
