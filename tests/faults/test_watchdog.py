"""A run that is stuck: the watchdog names the place, writes the stacks down, and can end the process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time

from rich.console import Console

from proxlm.config import RunSettings
from proxlm.runlog import run_log
from proxlm.runlog.live import LiveView
from proxlm.runlog.run_log import RunLog

QUICK = RunSettings(tensorboard=False, watchdog=0.3 / 60)
STUCK = """
import sys, time
from pathlib import Path
from proxlm.config import RunSettings
from proxlm.runlog.run_log import RunLog
settings = RunSettings(tensorboard=False, watchdog=0.3 / 60, watchdog_stop=True)
with RunLog(Path(sys.argv[1]), "ppo", 9, settings) as log:
    log.phase("score")
    time.sleep(600)
"""

MOVING = """
import sys, time
from pathlib import Path
from proxlm.config import RunSettings
from proxlm.runlog.run_log import RunLog
with RunLog(Path(sys.argv[1]), "ppo", 9, RunSettings(tensorboard=False, watchdog=1 / 60, watchdog_stop=True)) as log:
    print("moves", flush=True)
    for k in range(30):
        log.progress(k, 30)
        time.sleep(0.05)
"""


def wait_for_the_reward_of_sample_three(until):
    wait_for(until)


def wait_for(until, seconds=60.0):
    """Wait until the condition holds; a loaded machine only takes longer."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_phase_step_and_sample_are_named_and_the_stacks_written(tmp_path, capfd):
    path = tmp_path / "stuck-step-00000002.txt"
    printed = []

    def reported(text):
        printed.append(capfd.readouterr().err)
        return text in "".join(printed)

    with RunLog(tmp_path, "ppo", 9, QUICK) as log:
        log.metrics(1, {"reward": 0.5})
        log.phase("generate")
        log.progress(3, 64)
        wait_for_the_reward_of_sample_three(lambda: reported("has not moved"))
        time.sleep(0.6)  # longer than the limit again
        log.progress(4, 64)
        wait_for(lambda: reported("moves again"))
    lines = ("".join(printed) + capfd.readouterr().err).splitlines()
    assert lines[0].startswith("stuck: step 2 of 9, generate 3/64 has not moved for ")
    assert lines[0].endswith(f"what each thread does is in {path}")
    assert lines[1] == "it moves again: step 2 of 9, generate 4/64"
    # Reported once, however long it lasts. (A pause of this machine after it moved again may be one of its own.)
    assert not any("generate 3/64" in line for line in lines[1:])
    assert "wait_for_the_reward_of_sample_three" in path.read_text()


def test_a_run_that_moves_is_left_alone(tmp_path, capfd):
    with RunLog(tmp_path, "ppo", 9, RunSettings(tensorboard=False, watchdog=1.5 / 60)) as log:
        for k in range(
            25
        ):  # 2.5 seconds in all; no single pause comes near the limit, on a loaded machine either
            log.progress(k, 25)
            time.sleep(0.1)
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.glob("stuck-*"))
    assert not [t for t in threading.enumerate() if t.name == "proxlm-watchdog"]


def test_the_live_view_shows_it(tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(run_log, "view_for", lambda state: LiveView(state, console))
    with RunLog(tmp_path, "ppo", 9, QUICK) as log:
        log.phase("update")
        wait_for(lambda: "has not moved for" in console.file.getvalue())
    assert "stuck: step 1 of 9, update has not moved for" in console.file.getvalue()


def test_it_can_end_the_process(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert time.monotonic() - began < 200  # the process would sleep for 600
    assert done.returncode == 75
    assert "stuck: step 1 of 9, score has not moved" in done.stderr
    line = STUCK.splitlines().index("    time.sleep(600)") + 1
    assert f'File "<string>", line {line}' in (tmp_path / "stuck-step-00000001.txt").read_text()


def test_a_process_that_was_suspended_is_not_stuck(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", MOVING, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "moves\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert not list(tmp_path.glob("stuck-*"))


def test_nothing_watches_where_it_is_off(tmp_path):
    with RunLog(tmp_path, "ppo", 9, RunSettings(tensorboard=False, watchdog=0.0)):
        assert not [t for t in threading.enumerate() if t.name == "proxlm-watchdog"]
