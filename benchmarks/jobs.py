"""Runs of the command line that benchmarks start and read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_job(job: str, folder: Path, settings: dict[str, Any], recipe: str = "") -> Path:
    """One run of `proxlm JOB`, if its folder is not there whole; returns the folder."""
    if not (folder / "report.html").exists():
        arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "proxlm", job, *([recipe] if recipe else [])]
        done = subprocess.run(
            [*command, "--run.folder", str(folder), *arguments], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{folder}: {done.stderr[-2000:]}")
    return folder


def evaluated(folder: Path) -> list[dict[str, Any]]:
    """The models of a run's evaluation.json: before and after."""
    models: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))[
        "models"
    ]
    return models


def after(folder: Path) -> dict[str, float]:
    """The means of the held-out evaluation after training, by metric."""
    return {name: estimate["mean"] for name, estimate in evaluated(folder)[1]["metrics"].items()}
