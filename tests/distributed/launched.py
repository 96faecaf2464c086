"""Starting real runs of the command line in two processes, and comparing what they have left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import proxlm

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(proxlm.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "proxlm", *arguments]


def alone(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in one process, to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def launch_command(job: str, folder: str, *more: str) -> list[str]:
    return command("launch", job, f"{job}.toml", "--workers", "2", "--set", f"run.folder={folder}", *more)


def launched(place: Path, job: str, folder: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A job's recipe in two processes, to its end."""
    return subprocess.run(
        launch_command(job, folder, *more),
        cwd=place,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def begun(place: Path, job: str, folder: str, *more: str, **how: Any) -> subprocess.Popen[bytes]:
    """The same under way; what it shows is in FOLDER.txt. how: of `Popen`."""
    with (place / f"{folder}.txt").open("w") as shown:
        return subprocess.Popen(
            launch_command(job, folder, *more), cwd=place, env=ENVIRONMENT, stdout=shown, stderr=shown, **how
        )


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same_run(one: Path, two: Path, tolerance: float) -> None:
    """The same weights, and the same metrics of every step, up to rounding."""
    weights, others = (load_file(folder / "policy" / "model.safetensors") for folder in (one, two))
    assert weights.keys() == others.keys()
    for name, p in weights.items():
        assert float((p - others[name]).abs().max()) <= tolerance, name
    measured = ("time", "tokens_per_second", "memory")
    for row, wanted in zip(rows(two), rows(one), strict=True):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            if not name.startswith(measured) and isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def wait_for(path: Path, run: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while not path.exists():
        assert run.poll() is None, f"ended before there was {path}"
        assert time.monotonic() - began < 200
        time.sleep(0.02)


def said(shown: Path, text: str) -> None:
    """Wait until a run has shown a text."""
    began = time.monotonic()
    while text not in shown.read_text():
        assert time.monotonic() - began < 200, shown.read_text()
        time.sleep(0.02)


def worker(agent: int, rank: int) -> int:
    """The process of a rank among the agent's children."""
    children = [int(child) for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    for child in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"no rank {rank} among {children}")
