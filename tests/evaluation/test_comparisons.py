"""Judges on held-out comparisons: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from proxlm.data.preferences import Choice, Comparison
from proxlm.evaluation.comparisons import Judged, evaluation_of
from proxlm.evaluation.intervals import correlation, wilson_interval
from proxlm.evaluation.metrics import calibration_error
from proxlm.evaluation.word_baseline import word_scores
from proxlm.types import Completion


def comparison(i: int, part: str = "") -> Comparison:
    return Comparison(Completion("p", "a" * (i + 2)), Completion("p", "b"), slice=part, where=f"f:{i}")


def test_accuracy_by_hand_a_tie_is_half():
    judged = Judged(
        [
            (comparison(0, "x"), (1.0, 0.0)),
            (comparison(1, "x"), (0.0, 0.0)),
            (comparison(2, "y"), (0.0, 2.0)),
            (comparison(3, "y"), (3.0, 0.0)),
        ]
    )
    found = evaluation_of("model", "m", judged).metrics
    assert found["accuracy"] == wilson_interval(2.5, 4)
    assert found["accuracy"].mean == 0.625
    assert 0 < found["accuracy"].low < found["accuracy"].high < 1
    assert (found["accuracy/x"].mean, found["accuracy/y"].mean) == (0.75, 0.5)
    assert found["margin"].mean == pytest.approx((1 + 0 - 2 + 3) / 4)
    losses = [math.log(1 + math.exp(-lead)) for lead in (1, 0, -2, 3)]
    assert found["log_loss"].mean == pytest.approx(sum(losses) / 4, abs=1e-12)


def test_scores_that_are_only_an_order_have_no_margins():
    judged = Judged([(comparison(i), (1.0, 0.0)) for i in range(4)])
    assert set(evaluation_of("length", "", judged, scores_mean_something=False).metrics) == {"accuracy"}


def test_large_scores_are_finite():
    found = evaluation_of("m", "", Judged([(comparison(i), (1e6, -1e6)) for i in range(5)])).metrics
    assert found["log_loss"].mean == 0.0
    assert found["calibration_error"].mean == 0.0
    assert evaluation_of("m", "", Judged([(comparison(i), (-1e6, 1e6)) for i in range(5)])).metrics[
        "log_loss"
    ].mean == pytest.approx(2e6)


def test_best_of_four_with_ties_shared():
    four = Choice(tuple(Completion("p", str(i)) for i in range(4)), right=1, slice="s")
    judged = Judged(
        [(comparison(0), (1.0, 0.0))],
        [(four, [2.0, 1.0, 0.0, 0.0]), (four, [1.0, 1.0, 0.0, 0.0]), (four, [0.0, 1.0, 0.0, 0.0])],
    )
    found = evaluation_of("m", "", judged).metrics
    assert found["best_of_n"].mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["best_of_n/s"].mean == found["best_of_n"].mean


@pytest.mark.parametrize(
    ("sure", "right", "error"),
    [
        ([0.75] * 4, [1, 1, 1, 0], 0.0),  # calibrated
        ([1.0] * 4, [1, 1, 0, 0], 0.5),  # too sure
        ([0.5] * 4, [1, 1, 1, 1], 0.5),  # not sure enough
        ([0.51, 0.99], [1, 0], (0.49 + 0.99) / 2),  # two bins
        ([0.62, 0.64], [1, 0], abs((1 - 0.62) + (0 - 0.64)) / 2),  # one bin
    ],
)
def test_calibration_error_by_hand(sure, right, error):
    assert calibration_error(sure, right) == pytest.approx(error, abs=1e-12)
    with pytest.raises(ValueError):
        calibration_error([], [])


def test_correlation_is_bounded_and_absent_where_it_has_no_meaning():
    line = correlation([1, 2, 3, 4], [2, 4, 6, 8.0])
    assert line is not None
    assert (line.mean, line.low, line.high) == (1.0, 1.0, 1.0)
    found = correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
    assert found is not None
    assert found.mean == pytest.approx(0.8)
    # tanh(atanh(0.8) ± 1.96 / √2)
    assert found.low == pytest.approx(math.tanh(math.atanh(0.8) - 1.959963984540054 / math.sqrt(2)))
    assert -1 < found.low < found.high < 1
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert correlation([1, 2, 3], [1, 2, 3]) is None


def test_words_that_decide_are_found():
    pytest.importorskip("sklearn")
    good = [f"it was good thing{i % 5}" for i in range(40)]
    bad = [f"it was bad thing{(i + 1) % 5}" for i in range(40)]
    scores = word_scores(good, bad, ["good", "bad", "thing1"])
    assert scores is not None
    assert scores[0] > 0 > scores[1]
    assert word_scores(good[:5], bad[:5], ["good"]) is None


def test_without_scikit_learn_there_are_none(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    assert word_scores(["a"] * 40, ["b"] * 40, ["a"]) is None
