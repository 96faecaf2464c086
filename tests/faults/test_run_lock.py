"""Two runs in one folder: the second is refused, with the first one's process and host; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxlm.errors import RunError
from proxlm.runlog.folder import open_run
from proxlm.runlog.lock import locked, refuse_if_held

HOLD = """
import sys; from pathlib import Path; from proxlm.runlog.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True); sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that runs in the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_the_first_is(tmp_path, other):
    wanted = f"{tmp_path}: process {other.pid} on {socket.gethostname()} is running in this folder"
    for refused in (
        lambda: locked(tmp_path).__enter__(),
        lambda: refuse_if_held(tmp_path),
        lambda: open_run(str(tmp_path), "ppo", False, lambda folder: ""),
    ):
        with pytest.raises(RunError) as caught:
            refused()
        assert str(caught.value).startswith(wanted)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_a_process_that_was_killed_holds_nothing(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / ".lock").exists()
    refuse_if_held(tmp_path)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert list(tmp_path.iterdir()) == []


def test_one_that_ended_leaves_the_folder_free(tmp_path, other):
    other.communicate("")
    for _ in range(2):
        with locked(tmp_path), pytest.raises(RunError, match="is running in this folder"):
            locked(tmp_path).__enter__()
    refuse_if_held(tmp_path / "none")
    assert list(Path(tmp_path).iterdir()) == []


FORKS = """
import os, sys, time; from pathlib import Path; from proxlm.runlog.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        print("held", flush=True)
        sys.stdin.read(); os._exit(0)
    sys.stdin.read()
"""
# Hands every file that it has open to a process that it starts.
HANDS_ON = """
import os, sys; from pathlib import Path; from proxlm.runlog.lock import locked
with locked(Path(sys.argv[1])):
    for handle in os.listdir("/proc/self/fd"):
        if os.path.realpath(f"/proc/self/fd/{handle}").endswith(".lock"):
            os.set_inheritable(int(handle), True)
    sleeps = "import os, time; print('held', flush=True); print(os.getpid(), flush=True); time.sleep(600)"
    os.posix_spawn(sys.executable, [sys.executable, "-c", sleeps], os.environ)
    sys.stdin.read()
"""


def holding(script, folder):
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_process_that_a_reward_has_forked_holds_nothing(tmp_path):
    """It outlives the run, and neither keeps the lock nor, when it ends, takes another run's file away."""
    process = holding(FORKS, tmp_path)
    with pytest.raises(RunError, match=f"process {process.pid} on"):
        refuse_if_held(tmp_path)
    process.kill()
    process.wait()
    with locked(tmp_path):
        process.stdin.close()
        assert process.stdout.read() == ""  # the forked one has ended, too
        process.stdout.close()
        assert (tmp_path / ".lock").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_one_that_still_holds_the_file_of_a_dead_run_is_told_apart(tmp_path):
    process = holding(HANDS_ON, tmp_path)
    sleeper = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    try:
        with pytest.raises(RunError) as caught:
            refuse_if_held(tmp_path)
    finally:
        os.kill(sleeper, signal.SIGKILL)
    wanted = (
        f"process {process.pid} on {socket.gethostname()} has ended, but a process that it started still has"
    )
    assert wanted in str(caught.value)
