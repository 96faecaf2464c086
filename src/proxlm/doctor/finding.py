"""What a rule found, as text for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.doctor.window import Rows, step_of

Severity = Literal["warning", "serious"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run.

    step: when it was first seen; last: the newest step at which it was. A rule knows the newest step alone and
    gives it as both; the Doctor keeps the first. seen: what the numbers are; advice: what to try, most promising
    first.
    """

    rule: str
    severity: Severity
    step: int
    last: int
    seen: str
    advice: tuple[str, ...]

    def line(self) -> str:
        """The finding in one line, for the log of a run that goes on."""
        tries = "; or ".join(self.advice)
        return f"doctor, step {self.last}: {self.severity}: {self.rule}: {self.seen}. Try: {tries}"

    def as_json(self) -> dict[str, Any]:
        """The finding as plain values."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "first_step": self.step,
            "last_step": self.last,
            "seen": self.seen,
            "try": list(self.advice),
        }


def found(rows: Rows, rule: str, seen: str, *advice: str, serious: bool = False) -> Finding:
    """A finding of the newest step."""
    step = step_of(rows)
    return Finding(rule, "serious" if serious else "warning", step, step, seen, advice)


def now(value: float) -> str:
    """ " (now 0.05)" for a setting that is known, which is one of 0 or more; else nothing."""
    return f" (now {value:g})" if value >= 0 else ""
