"""The doctor: applies all rules to a run's rows, and remembers what it has reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxlm.doctor import rules_held_out, rules_policy, rules_reward, rules_run, rules_update
from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding
from proxlm.doctor.rule import Rule
from proxlm.doctor.window import History, Table
from proxlm.runlog.folder import read_jsonl

# In the order in which findings of the same step are reported: causes before consequences.
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        rules_update.gradients_not_finite,
        rules_reward.reward_failed,
        rules_run.rollout_gap,
        rules_held_out.weights_drop_tokens,
        rules_held_out.filters_drop_much,
        rules_update.learning_rate_too_large,
        rules_update.learning_rate_too_small,
        rules_update.clip_often,
        rules_update.clip_never,
        rules_reward.reward_without_variance,
        rules_policy.kl_blow_up,
        rules_policy.entropy_collapse,
        rules_run.critic_worse_than_mean,
        rules_reward.reward_falls,
        rules_held_out.held_out_falls,
        rules_held_out.greedy_unchanged,
        rules_reward.length_hacking,
        rules_reward.repetition,
        rules_run.eos_never,
        rules_run.eos_at_once,
    )
}

# A finding that comes back within this many steps is the same finding.
QUIET_STEPS = 20


@dataclass
class _Episode:
    """One stretch of steps in which a rule found something, gaps shorter than QUIET_STEPS included."""

    finding: Finding
    row: int


class Doctor:
    """Reads a run's rows one by one.

    For a run that is resumed, use `of_run`: several rules compare with the run's first steps.

    Args:
        facts: the run's settings, `facts_of(config)`; by default none is known.
    """

    def __init__(self, facts: Facts | None = None) -> None:
        self.facts = facts or Facts()
        self._rows = History()
        self._episodes: dict[str, list[_Episode]] = {}

    @classmethod
    def of_run(cls, facts: Facts, folder: Path, step: int) -> Doctor:
        """A doctor that has read the rows in a run's folder, if the run is resumed from a step after the first.

        Args:
            facts: the run's settings.
            folder: the run's folder.
            step: the step that the run is resumed from; 0: a new run.
        """
        doctor, past = cls(facts), folder / "metrics.jsonl"
        if step and past.exists():
            for row in read_jsonl(past):
                doctor.see(row)
        return doctor

    def see(self, row: Mapping[str, Any]) -> list[Finding]:
        """Read one step's metrics.

        Args:
            row: the metrics, "step" among them.

        Returns:
            The new findings: those whose rule found nothing in the last 20 steps, and those that turned from a
            warning into something serious.
        """
        self._rows.append(row)
        return self._judge()

    def see_ends(self, before: Table, after: Table) -> list[Finding]:
        """Read the evaluations before and after the run, once all its rows are read.

        Args:
            before: of each metric of held-out prompts the mean, and the low and high end of its interval.
            after: the same of the trained policy.

        Returns:
            The new findings.
        """
        self._rows.ends = before, after
        return self._judge() if self._rows else []

    def _judge(self) -> list[Finding]:
        new = []
        for name, rule in RULES.items():
            found = rule(self._rows, self.facts)
            if found is not None and self._remember(name, found):
                new.append(found)
        return new

    def _remember(self, name: str, found: Finding) -> bool:
        """Whether the finding is new, or newly serious."""
        episodes, here = self._episodes.setdefault(name, []), len(self._rows)
        if not episodes or here - episodes[-1].row > QUIET_STEPS:
            episodes.append(_Episode(found, here))
            return True
        episode, known = episodes[-1], episodes[-1].finding
        episode.row = here
        if known.severity == "serious" and found.severity == "warning":
            # The worst of an episode is what is reported.
            episode.finding = replace(known, last=found.last)
            return False
        episode.finding = replace(found, step=known.step)
        return found.severity != known.severity

    def findings(self) -> list[Finding]:
        """What is wrong now: findings of the newest step, with the step at which each was first seen."""
        newest = [episodes[-1] for episodes in self._episodes.values()]
        return _sorted(episode.finding for episode in newest if episode.row == len(self._rows))

    def history(self) -> list[Finding]:
        """Everything found in the run, including what has disappeared again."""
        return _sorted(episode.finding for episodes in self._episodes.values() for episode in episodes)


def diagnose(
    rows: Iterable[Mapping[str, Any]], facts: Facts | None = None, ends: tuple[Table, Table] | None = None
) -> list[Finding]:
    """Everything a doctor finds in a run's rows: serious findings first, then by the step at which they began.

    A finding whose `last` is before the run's last step has disappeared again.

    Args:
        rows: the run's metric rows.
        facts: its settings.
        ends: the evaluations before and after it, as of `Doctor.see_ends`.
    """
    doctor = Doctor(facts)
    for row in rows:
        doctor.see(row)
    if ends is not None:
        doctor.see_ends(*ends)
    return doctor.history()


def cannot_judge(
    rows: Iterable[Mapping[str, Any]], facts: Facts, ends: tuple[Table, Table] | None = None
) -> dict[str, str]:
    """The rules that could not judge a run, each with the reason.

    Args:
        rows: The run's metric rows.
        facts: Its settings.
        ends: The evaluations before and after it; None: there are none.

    Returns:
        Reason by rule, in the order of the rules; empty where all could.
    """
    history = History(rows, ends)
    return {name: reason for name, rule in RULES.items() if (reason := rule.why_not(history, facts))}


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: (f.severity != "serious", f.step))
