"""Win rates: counts and intervals, and what is left of them at equal length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from proxlm.evaluation import win_rate as module
from proxlm.evaluation.intervals import wilson_interval
from proxlm.evaluation.win_rate import Preference, length_controlled, win_rate


def test_counts_ties_position_bias_and_what_was_not_said() -> None:
    said = [
        Preference(1.0, 1.0, 10.0),  # a win in both orders
        Preference(1.0, 0.0, 20.0),  # what is shown first wins: a tie
        Preference(0.5, 0.5, -5.0),
        Preference(0.0, 0.0, 0.0),
        Preference(1.0, 0.5, 5.0),
        None,
    ]
    found = win_rate("b", "a", said, ordered=True)
    assert (found.won, found.tied, found.lost, found.changed, found.failed) == (2, 2, 1, 2, 1)
    assert found.rate == wilson_interval(1 + 0.5 + 0.5 + 0 + 0.75, 5)
    # Of the 10 verdicts for the first one shown: 1, 0 | 1, 1 | ½, ½ | 0, 1 | 1, ½.
    assert found.first is not None
    assert found.first.mean == pytest.approx(6.5 / 10)
    assert found.longer == 6.0
    assert win_rate("b", "a", said, ordered=False).first is None


def fitted(y: np.ndarray, x: np.ndarray) -> float:
    """σ(θ) by plain gradient ascent on the same objective."""
    theta = phi = 0.0
    for _ in range(20_000):
        error = y - 1 / (1 + np.exp(-(theta + phi * x)))
        theta += 0.05 * (error.mean() - 0.01 * theta / len(y))
        phi += 0.05 * ((error * x).mean() - 0.01 * phi / len(y))
    return float(1 / (1 + math.exp(-theta)))


def test_the_regression_is_the_best_one() -> None:
    generator = np.random.default_rng(0)
    longer, wins = generator.normal(30, 100, 80), generator.choice([0.0, 0.5, 1.0], 80)
    found = length_controlled(wins, longer)
    assert found is not None
    assert found.mean == pytest.approx(fitted(wins, np.tanh(longer / longer.std())), abs=1e-4)


def test_scikit_learn_finds_the_same() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="a reference, where it is installed")
    generator = np.random.default_rng(1)
    longer = generator.normal(20, 50, 300)
    x = np.tanh(longer / longer.std())
    wins = (generator.random(300) < 1 / (1 + np.exp(-0.4 - x))).astype(float)
    model = linear.LogisticRegression(C=1e6, max_iter=1000).fit(x[:, None], wins)
    expected = 1 / (1 + math.exp(-model.intercept_[0]))
    assert length_controlled(wins, longer).mean == pytest.approx(expected, abs=2e-3)


def test_a_judge_of_length_alone_finds_equal_systems_equal_at_equal_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The longer answer wins at random by its length; the interval of the controlled rate holds ½."""
    monkeypatch.setattr(module, "RESAMPLES", 200)
    held, trials, plain = 0, 60, []
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        longer = generator.normal(60, 60, 200)
        wins = (generator.random(200) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))).astype(float)
        found = length_controlled(wins, longer, trial)
        held += found.low <= 0.5 <= found.high
        plain.append(wins.mean())
    assert np.mean(plain) > 0.7
    assert held / trials > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / trials)


def test_a_judge_that_does_not_see_length_is_left_alone() -> None:
    generator = np.random.default_rng(4)
    longer, wins = generator.normal(0, 60, 2000), (generator.random(2000) < 0.7).astype(float)
    assert length_controlled(wins, longer).mean == pytest.approx(wins.mean(), abs=0.01)


def test_edges() -> None:
    assert length_controlled([1.0, 0.0], [5.0, 5.0]) is None
    assert length_controlled([1.0] * 30, [float(i - 15) for i in range(30)]) is None
    assert length_controlled([1.0, 0.0, 1.0], [1.0, 2.0, 3.0]) is None  # no response is shorter
    assert length_controlled([float(i > 15) for i in range(31)], [float(i - 15) for i in range(31)]) is None
    assert length_controlled([1.0, 0.0, 1.0, 0.0], [-1.0, -1.0, 1.0, 1.0]).mean == pytest.approx(
        0.5, abs=1e-6
    )
