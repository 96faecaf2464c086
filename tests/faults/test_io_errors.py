"""What the system refuses in a checkpoint is one line, and nothing is lost: benchmarks/io_errors.py, shortened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from test_kill import BENCHMARKS, pytestmark  # noqa: F401

import proxlm


def test_every_operation_of_a_checkpoint_is_refused(tmp_path):
    """Of a run of control, from the rows of the second step into its best model, with the errors in turn."""
    output = tmp_path / "io_errors.json"
    command = [
        sys.executable,
        str(BENCHMARKS / "io_errors.py"),
        "--jobs",
        "control",
        "--operations",
        "144",
        "164",
    ]
    here = os.environ | {"PYTHONPATH": str(Path(proxlm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, env=here, timeout=280
    )
    found = json.loads(output.read_text())["control"]
    assert (done.returncode, found["wrong"]) == (0, []), done.stderr
    assert found["refusals"] >= 17
    assert found["ended"] >= 15
