"""The doctor: all rules over a run's rows, and a memory of what has been said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxlm.doctor import rules_policy, rules_reward, rules_run, rules_update
from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding
from proxlm.doctor.window import Row, Rows
from proxlm.runlog.folder import read_jsonl

Rule = Callable[[Rows, Facts], Finding | None]

# In the order in which findings of the same step are said: causes before what follows from them.
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        rules_update.gradients_not_finite,
        rules_reward.reward_failed,
        rules_run.rollout_gap,
        rules_update.learning_rate_too_large,
        rules_update.learning_rate_too_small,
        rules_update.clip_often,
        rules_update.clip_never,
        rules_reward.reward_without_variance,
        rules_policy.kl_blow_up,
        rules_policy.entropy_collapse,
        rules_run.critic_worse_than_mean,
        rules_reward.reward_falls,
        rules_reward.length_hacking,
        rules_reward.repetition,
        rules_run.eos_never,
        rules_run.eos_at_once,
    )
}

# A finding that comes back within so many steps had not really gone.
QUIET_STEPS = 20


@dataclass
class _Episode:
    """One stretch of steps in which a rule found something, gaps shorter than QUIET_STEPS included."""

    finding: Finding
    row: int


class Doctor:
    """Reads a run's rows as they come.

    `facts` are the run's settings (`facts_of(config)`). For a run that is resumed there is `of_run`: several rules
    compare with the run's first steps.
    """

    def __init__(self, facts: Facts | None = None) -> None:
        self.facts = facts or Facts()
        self._rows: list[Row] = []
        self._episodes: dict[str, list[_Episode]] = {}

    @classmethod
    def of_run(cls, facts: Facts, folder: Path, step: int) -> Doctor:
        """One that has seen the rows in a run's folder, if the run goes on from a step after the first."""
        doctor, past = cls(facts), folder / "metrics.jsonl"
        if step and past.exists():
            for row in read_jsonl(past):
                doctor.see(row)
        return doctor

    def see(self, row: Mapping[str, Any]) -> list[Finding]:
        """Take in one step's metrics, with "step" among them; returns what is new.

        A finding is new when its rule found nothing in the last 20 steps, or when it turns from a warning into
        something serious.
        """
        self._rows.append(row)
        new = []
        for name, rule in RULES.items():
            found = rule(self._rows, self.facts)
            if found is not None and self._remember(name, found):
                new.append(found)
        return new

    def _remember(self, name: str, found: Finding) -> bool:
        """Whether it is worth saying."""
        episodes, here = self._episodes.setdefault(name, []), len(self._rows)
        if not episodes or here - episodes[-1].row > QUIET_STEPS:
            episodes.append(_Episode(found, here))
            return True
        episode, known = episodes[-1], episodes[-1].finding
        episode.row = here
        if known.severity == "serious" and found.severity == "warning":
            # What was worst is what is told.
            episode.finding = replace(known, last=found.last)
            return False
        episode.finding = replace(found, step=known.step)
        return found.severity != known.severity

    def findings(self) -> list[Finding]:
        """What is wrong now: findings of the newest step, with the step at which each was first seen."""
        newest = [episodes[-1] for episodes in self._episodes.values()]
        return _sorted(episode.finding for episode in newest if episode.row == len(self._rows))

    def history(self) -> list[Finding]:
        """All that was found in the run, what has gone again too."""
        return _sorted(episode.finding for episodes in self._episodes.values() for episode in episodes)


def diagnose(rows: Iterable[Mapping[str, Any]], facts: Facts | None = None) -> list[Finding]:
    """All that a doctor finds in a run's rows, serious findings first, then by the step of their beginning.

    A finding whose `last` is before the run's last step has gone again.
    """
    doctor = Doctor(facts)
    for row in rows:
        doctor.see(row)
    return doctor.history()


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: (f.severity != "serious", f.step))
