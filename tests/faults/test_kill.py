"""A run killed at any of its file operations and resumed ends as one that was not: benchmarks/kill.py, shortened."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import proxlm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    not shutil.which("cc") or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="recording file operations needs a C compiler, glibc and x86-64",
)
# Run before the benchmark, to make a fault that it must see.
FAULTS = {
    "a state that is not restored": """
import proxlm.control.loop as loop
restore = loop.ControlLoop.restore
def forgetful(self, checkpoint, state, extra):
    restore(self, checkpoint, state, extra)
    self.environments.finished = []
loop.ControlLoop.restore = forgetful
""",
    "nothing is brought to the disk": "import os; os.fsync = lambda handle: None",
}
AND_THEN = "\nimport runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def kill(output, *arguments, fault=""):
    before = ["-c", fault + AND_THEN] if fault else []
    command = [sys.executable, *before, str(BENCHMARKS / "kill.py"), "--jobs", "control", "--checkpoint", "2"]
    here = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(proxlm.__file__).parents[1]), str(BENCHMARKS)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "--no-resumes", *arguments, "--output", str(output)],
        capture_output=True,
        text=True,
        env=here,
        timeout=280,
    )
    assert output.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(output.read_text())["control"]


@pytest.mark.checklist(38)
def test_killed_runs_end_as_if_nothing_had_been(tmp_path):
    """Every operation of the second of three checkpoints and of the best model before it, with every state that a
    crash may leave there.
    """
    status, found = kill(tmp_path / "kill.json")
    assert (status, found["different"]) == (0, [])
    assert found["operations"] > 400
    assert found["states"] > 90
    assert found["resumed"] + found["same"] == found["states"]
    assert found["resumed"] >= 2


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees(tmp_path, fault):
    status, found = kill(tmp_path / "kill.json", "--every", "16", fault=FAULTS[fault])
    assert status == 1
    assert found["different"]
