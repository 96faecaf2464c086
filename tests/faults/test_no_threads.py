"""A user's limit of processes and threads is reached (ulimit -u): one line that says so, for every number of threads
that a job could still start."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import run_until
from small_runs import PPO, SFT, tiny_place  # noqa: F401

from proxlm.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
ADVICE = "raise the limit of processes and threads (ulimit -u), or end other programs"
CONTROL = [
    "control", "--environment.id", "CartPole-v1", "--environment.count", "2", "--environment.steps", "64",
    "--ppo.horizon", "16", "--run.folder", "run", "--run.threads", "1", "--run.save-every", "1",
]  # fmt: skip
AHEAD = ["--ppo.max-staleness", "1", "--ppo.staleness-correction.mode", "token_truncate"]
# A user that nobody else is, whose processes are this one alone.
USER = 54321
_CAPABILITIES = (21, 24)  # CAP_SYS_ADMIN and CAP_SYS_RESOURCE, which know no limit


def limit_processes(number):
    """Let this process have so many threads. For root there is no limit, so root becomes somebody else."""
    if os.geteuid() == 0:
        os.setresuid(USER, 0, 0)  # files are read as root, threads are counted for the user
        _drop_capabilities()
    resource.setrlimit(resource.RLIMIT_NPROC, (number, number))


def _drop_capabilities():
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, sets) == 0
    for number in _CAPABILITIES:
        sets[0] &= ~(1 << number)
        sets[1] &= ~(1 << number)
    assert library.capset(header, sets) == 0


def run(arguments, number):
    place = "proxlm.__main__:_run"
    return run_until(arguments, place, lambda _child: None, before=lambda: limit_processes(number))


@pytest.fixture(scope="module", autouse=True)
def _the_limit_can_be_set():
    child = os.fork()
    if child == 0:
        status = 1
        try:
            limit_processes(1)
            os.fork()
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != errno.EAGAIN:
        pytest.skip("the limit of processes cannot be set here")


@pytest.mark.parametrize("job", ["ppo", "ppo, ahead", "sft", "control"])
def test_each_thread_that_cannot_be_started_is_one_line(tiny_place, job):  # noqa: F811
    arguments = {"ppo": PPO, "ppo, ahead": [*PPO, *AHEAD], "sft": SFT, "control": CONTROL}[job]
    refused = 0
    for number in range(1, 12):
        ended = run(arguments, number)
        if ended.status == 0:
            break
        refused += 1
        assert ended.status == 2, ended
        (line,) = (line for line in ended.errors.splitlines() if line.startswith("proxlm: error: "))
        assert line.endswith(ADVICE), ended
        assert "thread" in line
        assert len(line) <= 300 + len("proxlm: error: ")
        assert "Traceback" not in ended.errors
        for folder in ("run", "sft-run"):
            shutil.rmtree(folder, ignore_errors=True)
    assert ended.status == 0
    assert refused >= 1
    assert checkpoints(Path("sft-run" if job == "sft" else "run"))
    assert tiny_place.is_dir()


def test_a_table_needs_a_process(tiny_place):  # noqa: F811
    pq.write_table(pa.table({"prompt": ["a", "b", "c"] * 4}), tiny_place / "prompts.parquet")
    ended = run([*PPO, "--data.prompts", "prompts.parquet"], 1)
    assert ended.status == 2
    assert ended.errors.splitlines()[-1].startswith(
        "proxlm: error: prompts.parquet: cannot be read in a process of"
    )
    assert ended.errors.splitlines()[-1].endswith(ADVICE)
