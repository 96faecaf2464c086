"""Intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from measuring import measured

from proxlm.evaluation.bootstrap import Bootstrap, Counts, mean_over_prompts
from proxlm.evaluation.intervals import mean_of_rewards, mean_with_interval


def test_several_responses_to_a_prompt_count_as_one() -> None:
    once = mean_of_rewards([0.2, 0.7, 0.4])
    repeated = mean_over_prompts([0.2] * 4 + [0.7] * 4 + [0.4] * 4, [0] * 4 + [1] * 4 + [2] * 4)
    assert (repeated.mean, repeated.low, repeated.high) == pytest.approx((once.mean, once.low, once.high))
    assert mean_over_prompts([1.0, 3.0, 5.0], [0, 0, 1], mean_with_interval).mean == 3.5
    with pytest.raises(ValueError, match="no values"):
        mean_over_prompts([], [])


def mean_of(values: np.ndarray) -> object:
    def statistic(counts: Counts) -> Mapping[str, float]:
        return {"mean": float(counts @ values / counts.sum())}

    return statistic


def test_a_sample_draws_prompts_with_all_their_responses() -> None:
    bootstrap = Bootstrap(["a", "a", "b", "c"], 50, seed=1)
    draws = list(bootstrap.draws())
    assert len(draws) == 50
    for counts in draws:
        assert counts[0] == counts[1]
        assert counts[0] + counts[2] + counts[3] == 3
    assert np.array_equal(draws, list(bootstrap.draws()))
    assert not np.array_equal(draws, list(Bootstrap(["a", "a", "b", "c"], 50, seed=2).draws()))


def test_the_interval_holds_the_mean_in_about_95_of_100_samples() -> None:
    generator, held = np.random.default_rng(0), 0
    for trial in range(300):
        values = generator.normal(size=40)
        found = Bootstrap(range(40), 200, trial).intervals({"mean": values.mean()}, mean_of(values))["mean"]
        held += found.low <= 0.0 <= found.high
        assert found.low <= found.mean <= found.high
    assert 0.89 <= held / 300 <= 0.98


def test_one_prompt_has_no_interval_and_undefined_samples_are_left_out() -> None:
    one = Bootstrap([5, 5], 20, 0).intervals({"x": 0.3}, lambda counts: {"x": 9.0})["x"]
    assert (one.low, one.high) == (0.3, 0.3)
    never = Bootstrap([5, 6], 20, 0).intervals({"x": 0.3}, lambda counts: {"x": float("nan")})["x"]
    assert (never.low, never.high) == (0.3, 0.3)


@pytest.mark.parametrize("metric", ["macro_f1", "bleu", "chrf", "entity_f1"])
def test_intervals_of_metrics_of_all_responses(metric: str) -> None:
    """They stay within the metric's bounds, shrink with more prompts, and not with more responses to each."""
    entities = metric == "entity_f1"
    right = ["B-x O", "O B-y"] if entities else ["the one cat sat here", "no dog ran over there"]
    wrong = [right[1], right[0]]

    def width(repeats: int, prompts: int) -> float:
        texts, answers, ids = [], [], []
        for prompt in range(prompts):
            for _ in range(repeats):
                texts.append((right if prompt % 3 else wrong)[prompt % 2])
                answers.append(right[prompt % 2])
                ids.append(prompt)
        found = measured(texts, answers, metric, prompts=ids, resamples=200, samples_per_prompt=repeats)
        estimate = found.estimates[metric]
        assert 0 <= estimate.low <= estimate.mean <= estimate.high
        assert estimate.high <= (100 if metric in ("bleu", "chrf") else 1) + 1e-9
        return estimate.high - estimate.low

    assert width(1, 120) < 0.7 * width(1, 30)
    assert width(4, 30) == pytest.approx(width(1, 30), rel=0.02)
