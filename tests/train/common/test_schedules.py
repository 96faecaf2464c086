"""Learning rates at hand-computed steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

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
    for schedule in ("constant", "linear", "cosine", "cosine-restarts", "one-cycle", "polynomial"):
        assert rates([0], 1, schedule=schedule) == [2]


def of_torch(make, steps):
    """The rates of one of torch's own schedulers."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2.0)
    scheduler, found = make(optimiser), []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


def _stable_decay(optimiser):
    hold = lr_scheduler.ConstantLR(optimiser, 1.0, 100)
    fall = lr_scheduler.LinearLR(optimiser, 1.0, 0.1, 10)
    return lr_scheduler.SequentialLR(optimiser, [hold, fall], [29])


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({"schedule": "polynomial", "power": 3.0}, lambda o: lr_scheduler.PolynomialLR(o, 39, 3.0)),
        (
            {"schedule": "cosine-restarts", "cycles": 4, "final": 0.1},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=0.2),
        ),
        (
            {"schedule": "cosine-restarts", "cycles": 3},  # the last one is cut short
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 14),
        ),
        (
            {"schedule": "one-cycle", "rise": 0.35, "final": 0.004},
            lambda o: lr_scheduler.OneCycleLR(
                o, 2.0, 40, pct_start=0.35, final_div_factor=10, cycle_momentum=False
            ),
        ),
        ({"schedule": "warmup-stable-decay", "decay": 0.25, "final": 0.1}, _stable_decay),
        ({"schedule": "cosine", "final": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 39, 0.2)),
        ({"schedule": "exponential", "final": 0.5}, lambda o: lr_scheduler.ExponentialLR(o, 0.5 ** (1 / 39))),
    ],
)
def test_they_are_torchs_own(settings, own):
    assert rates(range(40), 40, **settings) == pytest.approx(of_torch(own, 40), rel=1e-9, abs=1e-12)
    assert max(rates(range(60), 40, **settings)) <= 2.0  # a run that has more steps than were planned


def test_warm_up_stands_before_restarts_and_decay():
    for schedule in ("cosine-restarts", "warmup-stable-decay", "polynomial"):
        assert rates([0, 1, 2, 3], 40, schedule=schedule, warmup=3) == pytest.approx([0.5, 1.0, 1.5, 2.0])


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
