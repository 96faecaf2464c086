"""Splits without leaks: what belongs together is in one part, and the shares are what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_duplicates import WORDS, corpus, exact_similarities

from proxlm.config import SplitSettings
from proxlm.corpus.splits import Split, parts_by_fold, parts_by_share, parts_by_time, seconds_of
from proxlm.data.skipped import Record
from proxlm.errors import BadRecordError, DataError


def decided(settings, records, seed=0):
    step = Split(settings, seed)
    rows = b"".join(step.row(Record(fields, i + 1, "f.jsonl")) for i, fields in enumerate(records))
    return step.parts, step.decide(np.frombuffer(rows, np.uint8).reshape(-1, step.width))


def test_no_near_duplicate_is_in_two_parts():
    texts = corpus(WORDS, " ", families=40, seed=2)
    settings = SplitSettings(validation=0.2, test=0.1, threshold=0.5, ngram=3, permutations=256)
    names, verdict = decided(settings, [{"text": text} for text in texts])
    assert names == ("train", "validation", "test")
    apart = verdict.part[:, None] != verdict.part[None, :]
    exact = exact_similarities(texts, 3)
    assert not apart[exact > 0.5 + 0.15].any()  # above the threshold by four deviations of the estimate
    shares = np.bincount(verdict.part) / len(texts)
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    # Without groups the same texts leak.
    _, plain = decided(
        SplitSettings(by="record", validation=0.2, test=0.1), [{"text": text} for text in texts]
    )
    assert (plain.part[:, None] != plain.part[None, :])[exact > 0.65].any()


@given(
    st.lists(st.integers(0, 30), min_size=40, max_size=200),
    st.floats(0.05, 0.3),
    st.floats(0, 0.3),
    st.integers(0, 99),
)
def test_groups_are_never_apart_and_no_part_is_too_large(authors, validation, test, seed):
    first = np.array([authors.index(author) for author in authors])
    part = parts_by_share(first, validation, test, seed)
    for author in set(authors):
        assert len({int(p) for p, a in zip(part, authors, strict=True) if a == author}) == 1
    sizes = np.bincount(part, minlength=3)
    shares = [share for share in (validation, test) if share]
    for size, share in zip(sizes[1:], shares, strict=False):
        assert size <= max(1, round(share * len(authors)))


def test_by_field_by_time_and_folds():
    records = [
        {"text": f"t{i}", "author": {"name": f"a{i % 7}"}, "at": f"2024-01-{i % 28 + 1:02d}"}
        for i in range(140)
    ]
    _, verdict = decided(SplitSettings(by="field", field="author.name", validation=0.3), records)
    assert len({(i % 7, int(part)) for i, part in enumerate(verdict.part)}) == 7
    _, verdict = decided(SplitSettings(by="time", field="at", validation=0.2, test=0.1), records)
    days = {part: {i % 28 for i, p in enumerate(verdict.part) if p == part} for part in (0, 1, 2)}
    assert max(days[0]) < min(days[1]) <= max(days[1]) < min(days[2])
    assert [len(days[part]) * 5 for part in (0, 1, 2)] == pytest.approx([98, 28, 14], abs=5)
    names, verdict = decided(SplitSettings(by="exact", folds=4), [{"text": f"t{i % 40}"} for i in range(80)])
    assert names == ("part-1", "part-2", "part-3", "part-4")
    assert (verdict.part[:40] == verdict.part[40:]).all()
    assert list(np.bincount(verdict.part)) == [20, 20, 20, 20]


@given(st.lists(st.integers(0, 20), min_size=20, max_size=40), st.floats(0.05, 0.3), st.floats(0.05, 0.3))
def test_times_are_in_order_and_equal_ones_together(times, validation, test):
    part = parts_by_time(np.array(times, float), validation, test)
    for early, p in zip(times, part, strict=True):
        for late, q in zip(times, part, strict=True):
            assert early >= late or p <= q
            assert early != late or p == q


def test_what_is_wrong_is_named():
    with pytest.raises(DataError, match="validation would be empty: 3 records in 1 groups"):
        decided(SplitSettings(by="exact", validation=0.3), [{"text": "same"}] * 3)
    with pytest.raises(DataError, match="there are only 2 groups"):
        parts_by_fold(np.array([0, 0, 2]), 3, 0)
    with pytest.raises(BadRecordError, match=r'f\.jsonl:1: field "at" is no time: soon'):
        decided(SplitSettings(by="time", field="at"), [{"text": "a", "at": "soon"}])
    with pytest.raises(BadRecordError, match='no field "who"'):
        decided(SplitSettings(by="field", field="who"), [{"text": "a"}])


def test_times():
    assert seconds_of("1970-01-02") == 86400.0
    assert seconds_of("1970-01-01T01:00:00+01:00") == 0.0
    assert seconds_of(5) == 5.0
    assert [seconds_of(x) for x in (True, None, "x", float("nan"), "nan", [])] == [None] * 6
