"""`proxlm doctor`: what is wrong with a PPO run, in plain words, and what to try."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from proxlm.config import ControlConfig, DoctorConfig, PPOConfig
from proxlm.doctor import RULES, Facts, Finding, diagnose, facts_of
from proxlm.errors import RunError
from proxlm.report.run_data import Row, read_metrics
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.saved_settings import read_saved_settings

WIDTH = 100


def main(config: DoctorConfig) -> None:
    """Print the findings, and write them as JSON if a file is asked for."""
    folder = Path(config.folder)
    rows, findings = examine(folder)
    print("\n".join(lines(folder, rows, findings)))
    if config.output:
        write_json_atomic(Path(config.output), as_json(folder, rows, findings))
        print(f"\nwritten to {config.output}")


def examine(folder: Path) -> tuple[list[Row], list[Finding]]:
    """The rows of a PPO run's folder and what the doctor finds in them; the run may still go on.

    Raises RunError that names the file, and the line, that is missing or not right.
    """
    saved = read_saved_settings(folder)
    if saved.job not in ("ppo", "control"):
        job = saved.job or f"none named in {folder / 'config.toml'}"
        raise RunError(
            f"{folder}: the run of another job ({job}): the doctor knows the metrics of PPO runs only"
        )
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise RunError(f"{folder}: no metrics.jsonl: the run has not finished a step yet")
    rows = read_metrics(metrics)
    if isinstance(saved.config, PPOConfig | ControlConfig):
        return rows, diagnose(rows, facts_of(saved.config))
    # Settings of another version: the rules do without them.
    return rows, diagnose(rows, Facts(control=saved.job == "control"))


def lines(folder: Path, rows: list[Row], findings: list[Finding]) -> list[str]:
    """What is printed."""
    last = int(rows[-1]["step"])
    read = f"{folder}: {len(rows)} step{'s' * (len(rows) != 1)} read, {int(rows[0]['step'])} to {last}"
    if not findings:
        return [f"{read}; none of the doctor's {len(RULES)} rules finds anything wrong"]
    printed = [f"{read}; {len(findings)} finding{'s' * (len(findings) != 1)}"]
    for finding in findings:
        printed += ["", f"{finding.severity.upper()}  {finding.rule}, {_when(finding, last)}"]
        printed += _paragraph(finding.seen, "  ")
        for number, advice in enumerate(finding.advice):
            printed += _paragraph(advice, "  try  " if number == 0 else "  or   ")
    return printed


def as_json(folder: Path, rows: list[Row], findings: list[Finding]) -> dict[str, Any]:
    """The same as plain values."""
    last = int(rows[-1]["step"])
    return {
        "folder": str(folder),
        "steps": len(rows),
        "last_step": last,
        "findings": [{**f.as_json(), "at_the_end": f.last == last} for f in findings],
    }


def _when(finding: Finding, last: int) -> str:
    """From which step to which, and whether it is so still."""
    if finding.last == last:
        return f"since step {finding.step}" if finding.step < last else f"step {last}"
    many = finding.last > finding.step
    return f"steps {finding.step} to {finding.last}, then gone" if many else f"step {finding.step}, then gone"


def _paragraph(text: str, first: str) -> list[str]:
    """The text in lines that fit a terminal, the later ones indented below the first."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
