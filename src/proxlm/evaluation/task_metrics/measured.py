"""What a metric of responses is and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proxlm.evaluation.bootstrap import Bootstrap, mean_over_prompts
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Confusion
from proxlm.evaluation.task_metrics.answers import Answer


@dataclass(frozen=True)
class Measured:
    """The numbers of some responses.

    Attributes:
        estimates: By the metric's name, without "task/".
        values: Of single responses, by the metric's name; None: it does not apply to one.
        notes: What is to be said of a metric beside its number, a signature for instance, by its name.
        confusion: Which answers were given for which.
    """

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    confusion: Confusion | None = None

    @staticmethod
    def joined(parts: Sequence[Measured]) -> Measured:
        """All numbers of the parts."""
        return Measured(
            {name: one for part in parts for name, one in part.estimates.items()},
            {name: one for part in parts for name, one in part.values.items()},
            {name: one for part in parts for name, one in part.notes.items()},
            next((part.confusion for part in parts if part.confusion), None),
        )


Metric = Callable[[Sequence[Answer], Bootstrap], Measured]
"""Some responses, and the samples of their prompts for intervals → numbers."""


def of_each(name: str, score: Callable[[Answer], float]) -> Metric:
    """A metric that is the mean of what single responses get."""

    def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        values = [score(answer) for answer in answers]
        return of_values({name: values}, bootstrap)

    return measure


def of_values(values: Mapping[str, Sequence[float | None]], bootstrap: Bootstrap) -> Measured:
    """Means over prompts of what single responses got; None counts in no mean."""
    estimates = {}
    for name, every in values.items():
        given = [(v, prompt) for v, prompt in zip(every, bootstrap.prompts, strict=True) if v is not None]
        if given:
            estimates[name] = mean_over_prompts([v for v, _ in given], [prompt for _, prompt in given])
    return Measured(estimates, values)
