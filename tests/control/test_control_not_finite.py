"""Rewards and observations that are no numbers: control skips the update and goes on, or ends where it only skips."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from helpers import SilentLog
from toys import Walk, job, trainer

from proxlm.checkpoint import newest_checkpoint
from proxlm.errors import RunError


class Breaks(Walk):
    """Pays, or shows, no number from a given step of it on."""

    def __init__(self, broken, after, until):
        super().__init__(continuous=False)
        self.broken, self.after, self.until, self.steps = broken, after, until, 0

    def step(self, action):
        seen, reward, *rest = super().step(action)
        self.steps += 1
        if self.after < self.steps <= self.until:
            seen, reward = (seen, math.nan) if self.broken == "reward" else (seen * math.nan, reward)
        return seen, reward, *rest


def control(broken, until, tmp_path, **more):
    config = job(steps=6, count=2)
    config = replace(config, run=replace(config.run, **more))
    return trainer(config, lambda: Breaks(broken, 20, until), tmp_path)


@pytest.mark.parametrize("broken", ["reward", "observation"])
def test_control_skips_and_goes_on(tmp_path, broken):
    made, log = control(broken, 22, tmp_path), SilentLog()
    made.train(log)
    skipped = [row["grad_norm/policy_not_finite"] for row in log.rows]
    assert skipped[0] == 0
    assert skipped[1] > 0
    assert skipped[3:] == [0, 0, 0]
    assert all(bool(p.isfinite().all()) for p in made.agent.parameters())
    assert bool(made.observation_statistics.mean.isfinite().all())
    assert math.isfinite(made.return_statistics.returns.mean)


def test_control_ends_where_it_only_skips(tmp_path):
    made = control("reward", 10**9, tmp_path, max_skipped_updates=2)
    with pytest.raises(RunError, match=r"no update in the last 2 steps.*environment 0, environment 1"):
        made.train(SilentLog())
    assert newest_checkpoint(tmp_path).name == "step-00000003"
    rows = [
        json.loads(line) for line in (tmp_path / "non-finite-step-00000003.jsonl").read_text().splitlines()
    ]
    assert [row["environment"] for row in rows] == [0, 1]
