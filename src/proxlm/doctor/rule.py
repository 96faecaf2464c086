"""A rule of the doctor: a function of the rows, and beside it what it needs to judge a run.

A rule that returns None says "nothing wrong" and "I cannot know" alike; its needs tell the two apart. The tests
compare them with what the rules do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxlm.doctor.facts import Facts
from proxlm.doctor.finding import Finding
from proxlm.doctor.window import Rows, ends_of, evaluations, learning, number
from proxlm.runlog.metric import Metric
from proxlm.runlog.metric_names import STALENESS

Look = Callable[[Rows, Facts], Finding | None]


@dataclass(frozen=True)
class Rule:
    """What it looks at, and what it needs: see `rule`. Callable."""

    look: Look
    steps: int
    metrics: tuple[Metric | tuple[Metric, ...], ...]
    any_steps: bool
    evaluations: int
    or_ends: bool
    unsuited: Callable[[Facts], str]
    own_responses: bool

    @property
    def name(self) -> str:
        return self.look.__name__

    def __call__(self, rows: Rows, facts: Facts) -> Finding | None:
        """What is wrong at the newest step; None: nothing, or it cannot know."""
        return self.look(rows, facts)

    def why_not(self, rows: Rows, facts: Facts) -> str:
        """Why it cannot judge a run; "": it can."""
        if reason := self.unsuited(facts):
            return reason
        # Responses of an older policy differ as much as the policy has learnt since.
        looked = [row for row in rows if not (self.own_responses and number(row, STALENESS))]
        ends = (ends_of(rows) or ()) if self.or_ends else ()
        steps = len(looked) if self.any_steps else sum(map(learning, rows))
        if steps < self.steps:
            kind = "" if self.any_steps else " in which the policy learns"
            return f"needs {self.steps} steps{kind}, there {'is' if steps == 1 else 'are'} {steps}"
        for needed in self.metrics:
            group = (needed,) if isinstance(needed, str) else needed
            if not (_known(looked, group) or (ends and all(any(n in e for n in group) for e in ends))):
                return f"no number of {' or '.join(group)}"
        if (evaluated := len(evaluations(rows))) < self.evaluations and not ends:
            return f"needs {self.evaluations} evaluations (evaluation.every), there are {evaluated}"
        return ""


def rule(
    steps: int,
    *metrics: Metric | tuple[Metric, ...],
    any_steps: bool = False,
    evaluations: int = 0,
    or_ends: bool = False,
    unsuited: Callable[[Facts], str] = lambda _: "",
    own_responses: bool = False,
) -> Callable[[Look], Rule]:
    """Make a rule of a function, with what it needs to judge.

    Args:
        steps: In which the policy learns, or with `any_steps` steps of any kind.
        metrics: Each a name, or several of which one is enough.
        any_steps: Steps in which only the critic learns count as well.
        evaluations: How many of held-out prompts during the run.
        or_ends: In place of these, the evaluations before and after the run are enough.
        unsuited: Why settings leave nothing to judge, or "".
        own_responses: Only steps whose responses are the policy's own count.
    """
    return lambda look: Rule(look, steps, metrics, any_steps, evaluations, or_ends, unsuited, own_responses)


def _known(rows: Rows, group: Sequence[Metric]) -> bool:
    return any(number(row, name) is not None for row in rows for name in group)
