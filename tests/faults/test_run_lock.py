"""Two runs in one folder: the second is refused, with the first one's process and host; a dead one holds nothing."""

from __future__ import annotations

import os
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
