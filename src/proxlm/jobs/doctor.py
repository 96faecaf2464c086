"""`proxlm doctor`: what is wrong with a PPO run, and what to try."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxlm.config import ControlConfig, DoctorConfig, PPOConfig
from proxlm.doctor import RULES, Facts, Finding, Table, cannot_judge, diagnose, facts_of
from proxlm.errors import RunError
from proxlm.report.evaluation_files import NAME as EVALUATIONS
from proxlm.report.run_data import Row, read_evaluation, read_metrics
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.metric_names import EVALUATION, STEP
from proxlm.runlog.outputs import check_output
from proxlm.runlog.saved_settings import read_saved_settings

WIDTH = 100


@dataclass(frozen=True)
class Examination:
    """What the doctor read and found in a run's folder.

    Attributes:
        folder: the run's folder.
        rows: its metric rows.
        findings: everything found, serious findings first.
        unknown: why the run's settings could not be used; empty where they could.
        silent: the rules that could not judge the run, with the reason.
    """

    folder: Path
    rows: list[Row]
    findings: list[Finding]
    unknown: str
    silent: dict[str, str]

    @property
    def last_step(self) -> int:
        """The newest step."""
        return int(self.rows[-1][STEP])

    @property
    def at_the_end(self) -> list[Finding]:
        """The findings that hold at the newest step."""
        return [finding for finding in self.findings if finding.last == self.last_step]


def main(config: DoctorConfig) -> None:
    """Print the findings, and write them as JSON if a file is asked for."""
    if config.output:
        check_output(Path(config.output), "doctor")
    examination = examine(Path(config.folder))
    print("\n".join(as_lines(examination)))
    if config.output:
        write_json_atomic(Path(config.output), as_json(examination))
        print(f"\nwritten to {config.output}")


def examine(folder: Path) -> Examination:
    """Apply the doctor's rules to the run in `folder`, which may still be going on.

    Raises:
        RunError: names the file, and the line, that is missing or malformed.
    """
    saved = read_saved_settings(folder)
    if saved.job not in ("ppo", "value", "control"):
        job = saved.job or f"none named in {folder / 'config.toml'}"
        raise RunError(
            f"{folder}: the run of another job ({job}): the doctor knows the metrics of PPO runs only"
        )
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise RunError(f"{folder}: no metrics.jsonl: the run has not finished a step yet")
    rows, facts = read_metrics(metrics), Facts(control=saved.job == "control")
    if isinstance(saved.config, PPOConfig | ControlConfig):
        facts = facts_of(saved.config)
    ends = evaluations_at_the_ends(folder)
    return Examination(
        folder, rows, diagnose(rows, facts, ends), saved.problem, cannot_judge(rows, facts, ends)
    )


def evaluations_at_the_ends(folder: Path) -> tuple[Table, Table] | None:
    """What a run's evaluation.json says of its policy before and after it; None where it says nothing of one.

    Raises:
        RunError: The file is damaged.
    """
    file = folder / EVALUATIONS
    if not file.exists():
        return None
    found = {
        model["name"]: {
            str(EVALUATION(name)): (mean, known.get("low", mean), known.get("high", mean))
            for name, known in model["metrics"].items()
            if (mean := known["mean"]) is not None
        }
        for model in read_evaluation(file)["models"]
    }
    return (found["before"], found["after"]) if {"before", "after"} <= found.keys() else None


def as_lines(examination: Examination) -> list[str]:
    """The lines to print."""
    rows, findings, last = examination.rows, examination.findings, examination.last_step
    read = (
        f"{examination.folder}: {len(rows)} step{'s' * (len(rows) != 1)} read, {int(rows[0][STEP])} to {last}"
    )
    found = f"{len(findings)} finding{'s' * (len(findings) != 1)}"
    if not findings:
        judged = len(RULES) - len(examination.silent)
        found = f"none of the {judged} rules that could judge finds anything wrong"
    printed = [f"{read}; {found}"]
    if examination.unknown:
        printed += _paragraph(f"the settings count as not known: {examination.unknown}", "note: ")
    printed += _silent(examination.silent)
    for finding in findings:
        printed += ["", f"{finding.severity.upper()}  {finding.rule}, {_when(finding, last)}"]
        printed += _paragraph(finding.seen, "  ")
        for number, advice in enumerate(finding.advice):
            printed += _paragraph(advice, "  try  " if number == 0 else "  or   ")
    return printed


def _silent(silent: dict[str, str]) -> list[str]:
    """How many rules could judge the run, and why the others could not: those of one reason together."""
    if not silent:
        return [f"all {len(RULES)} rules could judge"]
    reasons: dict[str, list[str]] = {}
    for rule, reason in silent.items():
        reasons.setdefault(reason, []).append(rule)
    printed = [f"{len(RULES) - len(silent)} of {len(RULES)} rules could judge; the others could not:"]
    for reason, rules in reasons.items():
        printed += _paragraph(f"{', '.join(rules)}: {reason}", "  ")
    return printed


def as_json(examination: Examination) -> dict[str, Any]:
    """The same as plain values."""
    last = examination.last_step
    return {
        "folder": str(examination.folder),
        "steps": len(examination.rows),
        "last_step": last,
        "rules": len(RULES),
        "cannot_judge": examination.silent,
        "findings": [{**f.as_json(), "at_the_end": f.last == last} for f in examination.findings],
    }


def _when(finding: Finding, last: int) -> str:
    """The steps of a finding, and whether it still holds."""
    if finding.last == last:
        return f"since step {finding.step}" if finding.step < last else f"step {last}"
    many = finding.last > finding.step
    return f"steps {finding.step} to {finding.last}, not since" if many else f"step {finding.step}, not since"


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
