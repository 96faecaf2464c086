import io
import math
import sys

import pytest
from rich.console import Console

from proxlm.runlog.live import LiveView, draw
from proxlm.runlog.plain import PlainView, step_line
from proxlm.runlog.state import RunState


def run(total: int = 200) -> RunState:
    return RunState("ppo", "step", total, 0, 0.0, ("reward", "kl"), 0.0)


def drawn(state: RunState, now: float, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(draw(state, now, width))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_line_of_the_plain_log() -> None:
    state = run()
    state.finish_step(11, {"clip_fraction": 0.05}, now=19.8)
    state.finish_step(12, {"reward": 0.412, "kl": 3.21, "entropy": 1.9, "value_loss": 7.0}, now=21.6)
    assert step_line(state, 21.6) == (
        "ppo 12/200  reward 0.412  kl 3.21  entropy 1.90  clip_fraction 0.050  1.80 s/step  left 5m 38s"
    )


def test_the_plain_log_has_at_most_a_line_a_second_but_the_first_and_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = run(total=30)
    view = PlainView(state)
    for step in range(1, 31):
        state.finish_step(step, {}, now=step * 0.3)
        view.step_done(step * 0.3)
    view.stop()
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [1, 5, 9, 13, 17, 21, 25, 29, 30]


def test_the_plain_log_ends_with_the_last_step_of_a_run_that_ends_early(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = run()
    view = PlainView(state)
    for step in (1, 2, 3):
        state.finish_step(step, {}, now=step * 0.01)
        view.step_done(step * 0.01)
    view.stop()
    view.stop()
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["ppo 1/200", "ppo 3/200"]


def test_a_note_survives_an_output_that_does_not_know_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    PlainView(run()).note("猫 sat")
    assert raw.getvalue() == b"? sat\n"


def test_the_live_view_before_the_first_step() -> None:
    state = run()
    state.enter("generate")
    state.phase_done, state.phase_total = 3, 8
    head, bar = drawn(state, 4.0, 60)
    assert head == "ppo step 0/200  4s elapsed  ? left  generate 3/8"
    assert bar.endswith("0%")
    assert len(bar) == 60


def test_the_live_view_of_a_run() -> None:
    state = run(total=10)
    for step in range(1, 6):
        state.finish_step(
            step, {"reward": step / 8, "kl": 8.0 - step, "entropy": 1.9, "x": 1.0}, now=2.0 * step
        )
    lines = drawn(state, 11.0, 80)
    assert lines[0] == "ppo step 5/10  11s elapsed  9s left"
    assert lines[1].endswith(" 50%")
    assert lines[3] == "reward 0.625 ▁▃▅▇█ 0.125 to 0.625"
    assert lines[4] == "kl      3.00 █▇▅▃▁ 3.00 to 7.00"
    assert lines[6].split() == ["entropy", "1.90", "s/step", "2.00"]
    assert len(lines) == 7


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_the_live_view_fits_the_terminal(width: int) -> None:
    state = run(total=100)
    names = ("entropy", "clip_fraction", "approx_kl", "explained_variance", "response_length", "eos_share")
    for step in range(1, 101):
        values = dict.fromkeys(names, 0.5)
        state.finish_step(step, {"reward": math.sin(step), "kl": step / 7, **values}, now=float(step))
    lines = drawn(state, 100.0, width)
    assert max(map(len, lines)) <= width
    assert sum("reward" in line for line in lines) == 1


def test_the_live_view_of_numbers_that_are_not_finite() -> None:
    state = run()
    state.finish_step(1, {"reward": math.nan, "kl": math.inf}, now=1.0)
    lines = drawn(state, 1.0, 80)
    assert [line.split() for line in lines[3:5]] == [["reward", "nan"], ["kl", "inf"]]


def test_a_note_stands_above_the_live_view_as_it_is() -> None:
    out = io.StringIO()
    view = LiveView(run(), Console(file=out, width=60, force_terminal=True, color_system=None))
    view.start()
    view.note("a [b] note")
    view.stop()
    text = out.getvalue()
    assert "a [b] note" in text
    assert text.rindex("ppo step 0/200") > text.index("a [b] note")
    assert "\x1b[?25h" in text.split("ppo step 0/200")[-1]  # the cursor is shown again
