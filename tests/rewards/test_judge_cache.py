"""The judge's cache holds what was written, whoever else writes and whoever is killed; Ctrl-C ends a wait at once."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judge_server import serving
from proxlm.rewards.judge_cache import JudgeCache

# Without torch: the cache's own file and its two small imports. Prints each question once it is written.
WRITER = """
import sys
from proxlm.rewards.judge_cache import JudgeCache
cache = JudgeCache(sys.argv[1])
for i in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}{i}", float(i))
    print(i, flush=True)
"""
ASKER = """
import sys
from proxlm import Completion, RewardSettings, build_reward
args = {"url": sys.argv[1], "model": "m"}
reward = build_reward(RewardSettings(use="judge", args=args))
print("ready", flush=True)
reward.score([Completion("p", str(i)) for i in range(20)])
"""


def test_two_processes_write_and_one_is_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "judge.sqlite")
    command = [sys.executable, "-c", WRITER, path]
    other = subprocess.Popen([*command, "b", "60"], stdout=subprocess.DEVNULL)
    with subprocess.Popen([*command, "a", "1000000"], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if int(line) == 60:
                killed.send_signal(signal.SIGKILL)
                break
    assert other.wait(60) == 0
    cache = JudgeCache(path)
    assert [cache.get(f"a{i}") for i in range(61)] == [float(i) for i in range(61)]
    assert [cache.get(f"b{i}") for i in range(60)] == [float(i) for i in range(60)]
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def test_a_cache_that_breaks_later_is_said_once_and_does_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "judge.sqlite"
    cache = JudgeCache(str(path))
    path.write_bytes(b"no database" * 1000)
    for _ in range(3):
        cache.put("a", 1.0)
        assert cache.get("a") is None
    assert len(caplog.records) == 1


def test_ctrl_c_ends_the_wait_at_once() -> None:
    with (
        serving(lambda *_: time.sleep(30)) as server,
        subprocess.Popen(
            [sys.executable, "-c", ASKER, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + 20
        while not server.questions and time.monotonic() < until:
            time.sleep(0.05)
        assert server.questions
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, errors = process.communicate(timeout=25)
        assert time.monotonic() - started < 20
        assert errors.rstrip().endswith("KeyboardInterrupt")
