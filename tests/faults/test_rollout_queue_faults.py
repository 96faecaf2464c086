"""Runs whose rollouts are made ahead: signals, kills, rewards in processes of their own, and what stays of a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import ACCEPT, PPO, reward_that_sends, tiny_place  # noqa: F401

import proxlm
from proxlm.__main__ import main
from proxlm.checkpoint import load_checkpoint, newest_checkpoint

AHEAD = [
    "--ppo.max-staleness",
    "1",
    "--ppo.staleness-correction.mode",
    "token_truncate",
    "--data.eval-count",
    "0",
]
DIES = """
import os
def score(completions):
    if os.path.exists("die"):
        os.remove("die")
        os._exit(3)
    return [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
"""
RAISES = """
calls = 0
def score(completions):
    global calls
    calls += 1
    if calls == 4:
        raise ValueError("the judge has gone home")
    return [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
"""
TIMED = ("time", "tokens_per_second", "memory_gb")


def rows_of(folder: Path):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in row.items() if not name.startswith(TIMED)} for row in rows]


def same_end(one: Path, two: Path):
    first, second = (load_checkpoint(newest_checkpoint(folder))[0] for folder in (one, two))
    assert first.keys() == second.keys()
    assert any(name.startswith("extra.version-") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows_of(one) == rows_of(two)


def in_a_process(*arguments: str, start=("-m", "proxlm")):
    here = os.environ | {"PYTHONPATH": str(Path(proxlm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, *PPO, *arguments]
    return subprocess.run(
        command, env=here, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def place(tiny_place):  # noqa: F811
    """The folder, with a run of the mode left alone in "whole"."""
    assert main([*PPO, *AHEAD, "--run.folder", "whole"]) == 0
    return tiny_place


# Of the reward's calls the first is the trial before the run; then one a step. What waits is the rollout after the
# step's own.
def test_a_signal_in_the_background_finishes_the_step_and_a_resume_is_exact(place, capfd):
    sends = reward_that_sends(place, "SIGTERM", call=4, waits=(1.0,))
    assert main([*PPO, *AHEAD, *sends, "--run.save-every", "0"]) == 143
    assert "stopped by SIGTERM after step 2 of 4, saved" in capfd.readouterr().err
    reward_that_sends(place)
    assert main(["ppo", "run/config.toml", "--resume", *ACCEPT]) == 0
    same_end(place / "run", place / "whole")


def test_a_reward_that_hangs_beside_the_update_holds_up_no_end(place):
    """SIGTERM arrives while the next rollout's reward hangs: this step is saved, and the process ends."""
    sends = reward_that_sends(place, "SIGTERM", call=4, waits=(600.0,))
    began = time.monotonic()
    done = in_a_process(*AHEAD, *sends)
    assert done.returncode == 143, done.stderr
    assert "after step 2 of 4" in done.stderr
    assert time.monotonic() - began < 100
    reward_that_sends(place)
    assert main(["ppo", "run/config.toml", "--resume", *ACCEPT]) == 0
    same_end(place / "run", place / "whole")


def test_a_killed_run_goes_on_as_if_nothing_had_been(place):
    sends = reward_that_sends(place, "SIGKILL", call=4, waits=(600.0,))
    assert in_a_process(*AHEAD, *sends).returncode == -signal.SIGKILL
    sends_nothing = reward_that_sends(place)
    assert main([*PPO, *AHEAD, *sends_nothing, "--run.resume", "true", *ACCEPT]) == 0
    same_end(place / "run", place / "whole")


@pytest.mark.parametrize("partial", ["false", "true"])
def test_a_killed_run_with_a_longer_queue_goes_on_too(tiny_place, partial):  # noqa: F811
    """Killed while step 6's rollout is scored, up to three steps ahead of the updates; with partial rollouts, one."""
    longer = [*AHEAD, "--ppo.max-staleness", "3", "--ppo.steps", "8", "--ppo.partial-rollouts", partial]
    assert main([*PPO, *longer, "--run.folder", "whole"]) == 0
    sends = reward_that_sends(tiny_place, "SIGKILL", call=7, waits=(600.0,))
    assert in_a_process(*longer, *sends).returncode == -signal.SIGKILL
    assert 2 <= len(rows_of(tiny_place / "run")) <= 5
    assert main([*PPO, *longer, *reward_that_sends(tiny_place), "--run.resume", "true", *ACCEPT]) == 0
    same_end(tiny_place / "run", tiny_place / "whole")


def test_a_reward_in_a_process_of_its_own_outlives_the_steps(place, capfd):
    """Its process dies and is started again beside an update; the evaluation after the run still has it."""
    (place / "dies.py").write_text(DIES)
    isolated = ["--reward.use", "dies.py:score", "--reward.isolate", "true", "--reward.on-error", "score"]
    held_out = [*AHEAD[:-1], "2"]
    learn = "import proxlm.train.ppo.loop as ppo, pathlib\nlearn, first = ppo.update, iter([True])\n"
    first = "ppo.update = lambda *a: (next(first, False) and pathlib.Path('die').touch(), learn(*a))[1]\n"
    run = "from proxlm.__main__ import main\nimport sys\nsys.exit(main(sys.argv[1:]))"
    done = in_a_process(*held_out, *isolated, start=("-c", learn + first + run))
    assert done.returncode == 0, done.stderr
    rows = rows_of(place / "run")
    assert len(rows) == 4
    assert sum(row["reward_failed"] for row in rows) == 4  # one batch
    assert not (place / "die").exists()
    models = json.loads((place / "run" / "evaluation.json").read_text())
    assert "signal 9" not in done.stderr
    assert models


def test_a_reward_that_raises_says_so_and_leaves_the_run_whole(place, capfd):
    (place / "raises.py").write_text(RAISES)
    assert main([*PPO, *AHEAD, "--reward.use", "raises.py:score"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "ValueError: the judge has gone home at" in last
    assert "raises.py:7" in last
    assert [row["step"] for row in rows_of(place / "run")] == [1, 2]
    (place / "raises.py").write_text(RAISES.replace("== 4", "== 99"))
    assert main(["ppo", "run/config.toml", "--resume", *ACCEPT]) == 0
    same_end(place / "run", place / "whole")
