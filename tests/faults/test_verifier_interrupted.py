"""Ctrl-C while a verifier hangs in its process: the second ends the run at once, and that process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import FIRST_STEP, PPO, tiny_place  # noqa: F401

pytest.importorskip("math_verify")

# From the first step on each response is one that math-verify would simplify for ever.
REWARD = rf"""
from pathlib import Path
from proxlm import Completion
from proxlm.rewards.answer_rewards import math_answer
judge = math_answer(seconds=3600.0)
calls = 0
def score(completions):
    global calls
    calls += 1
    text = "so 0.5" if calls < {FIRST_STEP} else r"\boxed{{9^{{9^{{9^9}}}}}}"
    if calls == {FIRST_STEP}:
        Path("hangs").touch()
    return judge([Completion("", text, fields={{"answer": "1/2"}}) for _ in completions])
"""
PATIENCE = 240.0


def until(happened: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_twice_ends_a_verifier_that_hangs(tiny_place):  # noqa: F811
    (tiny_place / "reward.py").write_text(REWARD, encoding="utf-8")
    with open("errors.txt", "w") as errors:
        run = subprocess.Popen(
            [sys.executable, "-m", "proxlm", *PPO], stdout=subprocess.DEVNULL, stderr=errors
        )
    until((tiny_place / "hangs").exists)
    tasks = Path(f"/proc/{run.pid}/task").iterdir()  # a process is the child of the thread that started it
    verifiers = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    assert len(verifiers) == 1
    time.sleep(0.3)  # the question is asked
    run.send_signal(signal.SIGINT)
    until(lambda: "Ctrl-C: finishing this step" in Path("errors.txt").read_text())
    assert is_running(verifiers[0])
    run.send_signal(signal.SIGINT)
    assert run.wait(PATIENCE) == 130
    until(lambda: not is_running(verifiers[0]))
    told = Path("errors.txt").read_text().splitlines()
    assert told[-1] == "proxlm: interrupted"
    assert not [line for line in told if "Traceback" in line or "Exception" in line]
    assert not (tiny_place / "run" / ".lock").exists()
