"""Learning rates at hand-computed steps."""

from __future__ import annotations

import math

import pytest

from proxlm.config import OptimiserSettings
from proxlm.train.common.schedules import learning_rate, warmup_note


def rates(steps, total, **settings):
    config = OptimiserSettings(lr=2.0, **settings)
    return [learning_rate(config, step, total) for step in steps]


def test_constant_and_warmup():
    assert rates([0, 5, 99], 100) == [2, 2, 2]
    assert rates([0, 1, 2, 3, 4], 100, warmup=3) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_linear_reaches_its_end_at_the_last_step():
    assert rates([0, 5, 10], 11, schedule="linear") == pytest.approx([2, 1, 0])
    assert rates([0, 5, 10, 20], 11, schedule="linear", final=0.5) == pytest.approx([2, 1.5, 1, 1])
    assert rates([2, 6, 10], 11, schedule="linear", warmup=2) == pytest.approx([2, 1, 0])


def test_cosine():
    assert rates([0, 5, 10], 11, schedule="cosine") == pytest.approx([2, 1, 0])
    quarter = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert rates([1, 4], 5, schedule="cosine", final=0.1) == pytest.approx([2 * quarter, 0.2])


def test_exponential():
    assert rates([0, 5, 10], 11, schedule="exponential", final=0.01) == pytest.approx([2, 0.2, 0.02])


def test_inverse_time():
    assert rates([0, 10, 30], 100, schedule="inverse-time", half_life=10) == pytest.approx([2, 1, 0.5])
    assert rates([15], 100, schedule="inverse-time", half_life=10, warmup=5) == pytest.approx([1])


def test_staged():
    stages = {"10": 0.5, "20": 0.1}
    assert rates([0, 9, 10, 19, 20, 50], 100, schedule="staged", stages=stages) == pytest.approx(
        [2, 2, 1, 1, 0.2, 0.2]
    )


def test_a_run_of_one_step_has_a_rate():
    for schedule in ("constant", "linear", "cosine"):
        assert rates([0], 1, schedule=schedule) == [2]


@pytest.mark.parametrize("total", [100, 40, 39, 10, 1])
def test_a_run_shorter_than_its_warm_up_is_told_what_it_reaches(total):
    """And its rates are those of a longer run, so that it can go on as one."""
    config = OptimiserSettings(lr=2.0, schedule="constant", warmup=20)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert rates == [learning_rate(config, step, 1000) for step in range(total)]
    said = warmup_note("optim", config, total)
    assert bool(said) == (total < 40)
    if total < 20:
        assert f"optim.warmup = 20 is more than half of the {total} optimiser steps" in said
        assert f"reaches {max(rates):.2g} of 2" in said
