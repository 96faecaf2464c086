import math

import pytest

from proxlm.runlog.state import RECENT_STEPS, RunState


def state(total: int = 10, start: int = 0, limit: float = 0.0, began: float = 100.0) -> RunState:
    return RunState("ppo", "step", total, start, limit, ("reward",), began)


def test_time_left_is_the_pace_times_the_steps_left_and_counts_down() -> None:
    run = state()
    assert math.isnan(run.seconds_left(101.0))
    run.finish_step(1, {}, now=104.0)
    run.finish_step(2, {}, now=106.0)
    assert run.seconds_per_step() == 3.0
    assert run.seconds_left(106.0) == 24.0
    assert run.seconds_left(107.5) == 22.5
    assert run.seconds_left(900.0) == 0.0
    assert run.share_done(106.0) == 0.2


def test_only_the_newest_steps_set_the_pace() -> None:
    run = state(total=1000)
    run.finish_step(1, {}, now=200.0)  # a slow first one
    for step in range(2, 2 + RECENT_STEPS):
        run.finish_step(step, {}, now=200.0 + 2 * (step - 1))
    assert run.seconds_per_step() == 2.0


def test_steps_that_are_not_all_told_set_the_pace_too() -> None:
    run = state(total=100)
    for step in range(10, 60, 10):
        run.finish_step(step, {}, now=100.0 + step)
    assert run.seconds_per_step() == 1.0
    assert run.seconds_left(150.0) == 50.0


def test_a_limit_ends_the_run_before_its_steps() -> None:
    run = state(total=1000, limit=60.0)
    assert run.seconds_left(110.0) == 50.0
    run.finish_step(1, {}, now=101.0)
    assert run.seconds_left(130.0) == 30.0
    assert run.share_done(130.0) == 0.5
    assert run.share_done(500.0) == 1.0
    quick = state(total=10, limit=60.0)
    quick.finish_step(1, {}, now=101.0)
    assert quick.seconds_left(101.0) == 9.0


def test_a_resumed_run_counts_only_its_own_steps() -> None:
    run = state(total=10, start=6)
    run.finish_step(7, {}, now=105.0)
    assert run.seconds_per_step() == 5.0
    assert run.seconds_left(105.0) == 15.0
    assert run.share_done(105.0) == 0.7


def test_newest_numbers_and_the_headlines_history() -> None:
    run = state()
    run.finish_step(1, {"reward": 0.1, "kl": 1.0}, now=101.0)
    run.finish_step(2, {"kl": 2.0}, now=102.0)
    run.finish_step(3, {"reward": 0.3}, now=103.0)
    assert run.history == {"reward": [0.1, 0.3]}
    assert run.latest == {"reward": 0.3, "kl": 2.0}


def test_a_new_phase_starts_at_nothing_done() -> None:
    run = state()
    run.enter("update")
    run.phase_done, run.phase_total = 3, 8
    run.enter("score")
    assert (run.phase, run.phase_done, run.phase_total) == ("score", 0, 0)


def test_the_share_of_no_steps_is_all() -> None:
    assert state(total=0).share_done(100.0) == pytest.approx(1.0)
