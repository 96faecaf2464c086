"""A clock that is set back or forward in the middle of a run: no duration is taken from it."""

from __future__ import annotations

import time

from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm.__main__ import main
from proxlm.runlog.folder import read_jsonl


def test_durations_do_not_follow_the_wall_clock(tiny_place, monkeypatch):  # noqa: F811
    day = [1e9]

    def jumping():
        day[0] -= 86_400.0  # each look is a day earlier
        return day[0]

    monkeypatch.setattr(time, "time", jumping)
    for command, run in ((PPO, "run"), (SFT, "sft-run")):
        assert main(command) == 0
        rows = read_jsonl(tiny_place / run / "metrics.jsonl")
        times = [row["time"] for row in rows]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] < 100
        durations = [v for row in rows for name, v in row.items() if name.startswith("time/")]
        assert durations
        assert all(0 <= v < 100 for v in durations)
