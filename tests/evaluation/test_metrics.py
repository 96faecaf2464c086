"""Metrics by hand and against tables."""

from __future__ import annotations

import math

import pytest

from proxlm.evaluation.intervals import (
    Estimate,
    mean_of_rewards,
    mean_with_interval,
    student_t_975,
    wilson_interval,
)
from proxlm.evaluation.metrics import distinct_n, perplexity, words_of


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (1000, 1.96234)],
)
def test_students_t(degrees, table):
    assert student_t_975(degrees) == pytest.approx(table, rel=3e-3)


def test_interval_by_hand():
    # mean 3, s = √2.5, n = 5, t(4) = 2.776
    got = mean_with_interval([1, 2, 3, 4, 5])
    half = 2.77645 * math.sqrt(2.5 / 5)
    assert (got.low, got.mean, got.high) == pytest.approx((3 - half, 3, 3 + half), rel=1e-3)
    one = mean_with_interval([2.0])
    assert (one.low, one.mean, one.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="no values"):
        mean_with_interval([])


@pytest.mark.parametrize(
    ("good", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055)],
)
def test_wilson_interval(good, count, low, high):
    """Against published tables (Newcombe 1998, method 3)."""
    found = wilson_interval(good, count)
    assert found.mean == good / count
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    with pytest.raises(ValueError, match="no trials"):
        wilson_interval(0, 0)


def test_the_interval_of_rewards_stays_in_their_range():
    assert mean_of_rewards([0.0] * 6 + [1.0] * 4) == wilson_interval(4, 10)
    assert mean_of_rewards([1.0]) == wilson_interval(1, 1)
    # Student's would reach beyond 1.
    values = [1.0] * 9 + [0.5]
    assert mean_with_interval(values).high > 1.06
    found = mean_of_rewards(values)
    assert (found.mean, found.high) == (pytest.approx(0.95), 1.0)
    assert found.low == mean_with_interval(values).low
    wide = [float(i) for i in range(-9, 10)]
    assert mean_of_rewards(wide) == mean_with_interval(wide)
    with pytest.raises(ValueError, match="no values"):
        mean_of_rewards([])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_the_interval_of_a_share_holds_it_in_about_95_of_100_samples(share):
    """Exactly, over all outcomes of 40 trials: the mean coverage of Wilson's interval is near 0.95."""
    held = sum(
        math.comb(40, good) * share**good * (1 - share) ** (40 - good)
        for good in range(41)
        if (found := mean_of_rewards([1.0] * good + [0.0] * (40 - good))).low - 1e-12
        <= share
        <= found.high + 1e-12
    )
    assert held > 0.92


def test_an_estimate_in_words():
    assert str(Estimate(0.5, 0.4, 0.6)) == "0.500 ± 0.100"
    assert str(Estimate(0.0, 0.0, 0.0385)) == "0.000 (0.000 to 0.038)"
    assert str(Estimate(2.0, 2.0, 2.0)) == "2.000"


def test_distinct_n():
    assert distinct_n([["a", "b", "a", "b"]], 1) == 0.5
    assert distinct_n([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct_n([["a"], []], 2) == 0.0


def test_perplexity_of_a_uniform_choice():
    assert perplexity(10 * math.log(1 / 7), 10) == pytest.approx(7)


def test_words():
    assert words_of("It's 3 cats, 春眠。ok_1") == ["It", "'", "s", "3", "cats", ",", "春", "眠", "。", "ok_1"]
