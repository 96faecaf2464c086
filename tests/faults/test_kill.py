"""A run that was killed with SIGKILL and resumed ends as one that was not: the short form of benchmarks/kill.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import proxlm

KILL = Path(__file__).parents[2] / "benchmarks" / "kill.py"
# Forgets the KL coefficient in a resume: a fault that the comparison must see.
FORGETFUL = """
import runpy, sys
from dataclasses import replace
import proxlm.train.common.run_loop as loop
whole = loop.read_state
loop.read_state = lambda *given: replace(whole(*given), kl_coef=0.05) if "kl_coef" in given[2] else whole(*given)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def kill(output, *arguments, before=()):
    command = [sys.executable, *before, str(KILL), *arguments, "--output", str(output)]
    here = os.environ | {"PYTHONPATH": str(Path(proxlm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=here, timeout=280)
    assert output.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(output.read_text())


@pytest.mark.checklist(38)
def test_killed_runs_end_as_if_nothing_had_been(tmp_path):
    status, found = kill(tmp_path / "kill.json", "--ppo", "3", "--sft", "2")
    assert status == 0, found
    for job, kills in (("ppo", 3), ("sft", 2)):
        assert found[job]["kills"] == kills
        assert found[job]["resumed"] + found[job]["before_a_checkpoint"] >= kills
        assert found[job]["different"] == []


def test_the_comparison_sees_a_state_that_was_not_restored(tmp_path):
    arguments = ("--ppo", "2", "--sft", "0", "--seed", "1")
    status, found = kill(tmp_path / "kill.json", *arguments, before=("-c", FORGETFUL))
    assert status == 1
    assert found["ppo"]["resumed"] >= 1
    assert any("state.safetensors" in line for line in found["ppo"]["different"])
    assert any("metrics.jsonl line" in line for line in found["ppo"]["different"])
