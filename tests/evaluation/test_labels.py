"""Judges of labels on held-out records: numbers worked out by hand, and those of other libraries."""

from __future__ import annotations

import math
import random

import pytest

from proxlm.data.labelled import Labelled
from proxlm.evaluation.intervals import rank_correlation, wilson_interval
from proxlm.evaluation.labels import evaluation_of_classes, evaluation_of_scores, evaluation_of_steps
from proxlm.evaluation.word_baseline import word_classes, word_values
from proxlm.types import Completion


def record(*numbers: float, part: str = "", text: str = "a") -> Labelled:
    return Labelled(Completion("p", text), numbers, part, "f:1")


def test_scores_by_hand_and_a_missing_one():
    answers = [
        (record(1.0, math.nan), (2.0, 9.0)),
        (record(3.0, 1.0), (3.0, 0.0)),
        (record(5.0, 2.0), (2.0, 2.0)),
    ]
    found = evaluation_of_scores("model", "m", ["a", "b"], answers)
    assert found.metrics["mse/a"].mean == pytest.approx((1 + 0 + 9) / 3)
    assert found.metrics["mae/a"].mean == pytest.approx((1 + 0 + 3) / 3)
    assert found.metrics["mse/b"].mean == pytest.approx((1 + 0) / 2)
    assert found.metrics["mse/a"].low >= 0
    assert "pearson/a" not in found.metrics  # fewer than four
    assert found.responses[0]["labels"] == {"a": 1.0, "b": None}


def test_ranks_are_scipys_also_with_ties():
    stats = pytest.importorskip("scipy.stats")
    generator = random.Random(0)
    for count in range(4, 60):
        first = [float(generator.randrange(5)) for _ in range(count)] + [0.0, 1.0]
        second = [generator.gauss(value, 2) for value in first]
        found = rank_correlation(first, second)
        assert found is not None
        assert found.mean == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
        assert -1 <= found.low <= found.mean <= found.high <= 1
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_classes_by_hand():
    answers = [
        (record(0, part="x"), (0.8, 0.1, 0.1)),
        (record(0, part="x"), (0.3, 0.4, 0.3)),
        (record(1, part="y"), (0.0, 1.0, 0.0)),
        (record(2, part="y"), (0.2, 0.2, 0.6)),
    ]
    found = evaluation_of_classes("model", "m", ["a", "b", "c"], answers).metrics
    assert found["accuracy"] == wilson_interval(3, 4)
    assert found["accuracy/x"].mean == 0.5
    losses = [-math.log(p) for p in (0.8, 0.3, 1.0, 0.6)]
    assert found["log_loss"].mean == pytest.approx(sum(losses) / 4)
    # Each answer in a bin of its own: |1 − 0.8|, |0 − 0.4|, |1 − 1|, |1 − 0.6|.
    assert found["calibration_error"].mean == pytest.approx((0.2 + 0.4 + 0.0 + 0.4) / 4)
    if "macro_f1" in found:  # a: 2/3, b: 2/3, c: 1
        assert found["macro_f1"].mean == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_an_impossible_answer_is_a_large_loss_and_no_error():
    found = evaluation_of_classes("m", "", ["a", "b"], [(record(0), (0.0, 1.0))]).metrics
    assert found["log_loss"].mean == pytest.approx(-math.log(1e-12))


def test_steps_and_the_first_that_is_wrong():
    answers = [
        (record(1.0, 0.0, 0.0), (0.9, 0.2, 0.8)),  # the first error is found, the third step is not
        (record(1.0, 1.0), (0.9, 0.6)),  # none, and none is found
        (record(1.0, 0.25), (0.4, 0.2)),  # found too early
    ]
    found = evaluation_of_steps("m", "", answers).metrics
    assert found["accuracy"].mean == pytest.approx(5 / 7)
    assert found["first_error"] == wilson_interval(2, 3)


def test_words_explain_values_and_classes():
    pytest.importorskip("sklearn")
    learnt = [f"{'good' if i % 2 else 'bad'} film {i % 5}" for i in range(60)]
    values = [5.0 + 3.0 * (i % 2) for i in range(60)]
    found = word_values(learnt, values, ["good film 2", "bad film 3"])
    assert found == pytest.approx([8.0, 5.0], abs=0.5)
    classes = word_classes(learnt, [2 * (i % 2) for i in range(60)], ["good film", "bad film"], 3)
    assert classes is not None
    assert classes[0][2] > 0.8
    assert classes[1][0] > 0.8
    assert classes[0][1] == 0.0  # nothing of that class was learnt
    assert word_values(learnt[:5], values[:5], ["good"]) is None
    assert word_classes(learnt, [0] * 60, ["good"], 2) is None
