"""The CPU seconds of a step: what its phases and what lies between them used, without its evaluation."""

from __future__ import annotations

import time

import pytest
from helpers import SilentLog

from proxlm.train.common.clock import Clock


def test_cpu_seconds_leave_out_the_evaluation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [100.0]

    def work(seconds: float) -> None:
        used[0] += seconds

    monkeypatch.setattr(time, "process_time", lambda: used[0])
    clock = Clock(SilentLog())
    with clock("generate"):
        work(2.0)
    work(0.25)  # between two phases
    with clock("update"):
        work(4.0)
    with clock("evaluate"):
        work(32.0)
    work(0.5)
    assert clock.metrics(tokens=10)["time/cpu"] == pytest.approx(6.75)
