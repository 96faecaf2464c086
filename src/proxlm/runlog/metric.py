"""What a metric is: a name with a unit and a meaning, which some jobs write; and families of such names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Self

Job = Literal["ppo", "value", "pretrain", "sft", "reward", "dpo", "distill", "control", "evaluate"]


class Metric(str):
    """The name of a metric, with its unit ("" for a plain number), its meaning, and the jobs that write it."""

    unit: str
    meaning: str
    jobs: tuple[Job, ...]

    def __new__(cls, name: str, unit: str, meaning: str, jobs: tuple[Job, ...]) -> Self:
        metric = super().__new__(cls, name)
        metric.unit, metric.meaning, metric.jobs = unit, meaning, jobs
        return metric

    def __getnewargs__(self) -> tuple[str, str, str, tuple[Job, ...]]:  # type: ignore[override]
        return str(self), self.unit, self.meaning, self.jobs

    def matches(self, name: str) -> bool:
        """Whether a name is this one."""
        return self == name


class MetricFamily:
    """Metrics whose names have a part that varies: "lr/{model}" stands for lr/policy and lr/critic.

    Args:
        pattern: the name, with the part that varies in braces.
        parts: the values of that part; empty: any text.
    """

    def __init__(
        self, pattern: str, unit: str, meaning: str, jobs: tuple[Job, ...], parts: Sequence[str] = ()
    ) -> None:
        self.pattern, self.unit, self.meaning, self.jobs, self.parts = pattern, unit, meaning, jobs, parts
        before, after = re.split(r"\{\w+\}", pattern)
        part = "|".join(map(re.escape, parts)) or ".*"
        self._before, self._after = before, after
        self._names = re.compile(f"{re.escape(before)}({part}){re.escape(after)}", re.DOTALL)

    def __call__(self, part: str | int) -> Metric:
        """The metric whose varying part is `part`."""
        return Metric(f"{self._before}{part}{self._after}", self.unit, self.meaning, self.jobs)

    def matches(self, name: str) -> bool:
        """Whether a name belongs to the family."""
        return self._names.fullmatch(name) is not None


DECLARED: dict[str, Metric | MetricFamily] = {}
"""The metrics of `metric_names.py`, in its order."""


class Jobs(tuple[Job, ...]):
    """Jobs, to declare what all of them write."""

    def metric(self, name: str, meaning: str, unit: str = "") -> Metric:
        """Declare a metric; unit "": a plain number."""
        DECLARED[name] = metric = Metric(name, unit, meaning, tuple(self))
        return metric

    def family(self, pattern: str, meaning: str, unit: str = "", parts: Sequence[str] = ()) -> MetricFamily:
        """Declare a family of metrics; pattern and parts: see `MetricFamily`."""
        DECLARED[pattern] = family = MetricFamily(pattern, unit, meaning, tuple(self), parts)
        return family
