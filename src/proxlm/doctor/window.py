"""Looking back over metric rows: medians of the newest steps, and what the run began with.

A row is what metrics.jsonl holds for a step. A number may be missing, None or NaN: such rows are skipped. Rows in
which only the critic learns (warmup = 1) tell nothing about the policy, and are skipped by all but
`newest_of_all`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from statistics import median
from typing import Any

from proxlm.runlog import metric_names as names
from proxlm.runlog.metric import Metric

Row = Mapping[str, Any]
Rows = Sequence[Row]
# An evaluation of held-out prompts: of each metric its mean and the ends of the mean's 95% interval.
Table = Mapping[str, tuple[float, float, float]]


class History(list[Row]):
    """A run's rows, which only grow, with those of them that rules look for from the start.

    Attributes:
        learnt: the rows in which the policy learns.
        rewarded: the rows that have a reward and its spread.
        evaluated: the rows with an evaluation on held-out prompts in which the policy learns.
        ends: the evaluations before and after the run, which no row holds; None: not known (yet).
    """

    def __init__(self, rows: Iterable[Row] = (), ends: tuple[Table, Table] | None = None) -> None:
        super().__init__()
        self.learnt: list[Row] = []
        self.rewarded: list[Row] = []
        self.evaluated: list[Row] = []
        self.ends = ends
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Add the newest row."""
        super().append(row)
        if learning(row):
            self.learnt.append(row)
        if _rewarded(row):
            self.rewarded.append(row)
        if _evaluated(row):
            self.evaluated.append(row)


def number(row: Row, name: Metric) -> float | None:
    """The row's finite number of that name, or None."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def learning(row: Row) -> bool:
    """Whether the policy learns in this step."""
    return number(row, names.WARMUP) != 1.0


def step_of(rows: Rows) -> int:
    """The newest row's step."""
    step = number(rows[-1], names.STEP) if rows else None
    return len(rows) if step is None else int(step)


def newest(rows: Rows, name: Metric, count: int) -> list[float]:
    """The numbers of the newest `count` rows; empty unless the policy learns in all of them."""
    last = rows[-count:]
    if len(last) < count or not learning(last[0]):
        return []
    return [value for row in last if (value := number(row, name)) is not None]


def newest_of_all(rows: Rows, name: Metric, count: int) -> list[float]:
    """The numbers of the newest `count` rows, or of all where there are fewer, critic warm-up included."""
    return [value for row in rows[-count:] if (value := number(row, name)) is not None]


def first(rows: Rows, name: Metric, count: int) -> list[float]:
    """The numbers of the first `count` rows in which the policy learns."""
    return [value for row in _learnt(rows, count) if (value := number(row, name)) is not None]


def middle(values: Sequence[float], needed: int) -> float | None:
    """The median, or None for fewer than `needed` values."""
    return median(values) if values and len(values) >= needed else None


def newest_middle(rows: Rows, name: Metric, count: int) -> float | None:
    """The median of the newest `count` rows; None unless most of them have the number."""
    return middle(newest(rows, name, count), count // 2 + 1)


def first_middle(rows: Rows, name: Metric, count: int) -> float | None:
    """The median of the first `count` rows in which the policy learns; None unless most have the number."""
    return middle(first(rows, name, count), count // 2 + 1)


def at_least(rows: Rows, count: int) -> bool:
    """Whether the policy has learnt for `count` steps."""
    return len(_learnt(rows, count)) >= count


def _learnt(rows: Rows, count: int) -> list[Row]:
    """The first `count` rows in which the policy learns."""
    return rows.learnt[:count] if isinstance(rows, History) else list(islice(filter(learning, rows), count))


def has_learnt(rows: Rows) -> bool:
    """Whether the reward has risen by more than its first spread. In a run of control there are rows in which no
    episode ended: the first and the newest five that have a reward count."""
    rewarded = rows.rewarded if isinstance(rows, History) else list(filter(_rewarded, rows))
    begun, newest_five = rewarded[:5], rewarded[:-6:-1]
    before, after = (middle([row[names.REWARD] for row in part], 5) for part in (begun, newest_five))
    if before is None or after is None:
        return False
    return after > before + median(row[names.REWARD_STD] for row in begun)


def _rewarded(row: Row) -> bool:
    return number(row, names.REWARD) is not None and number(row, names.REWARD_STD) is not None


def evaluations(rows: Rows) -> list[Row]:
    """The rows with an evaluation on held-out prompts in which the policy learns."""
    return rows.evaluated if isinstance(rows, History) else list(filter(_evaluated, rows))


def _evaluated(row: Row) -> bool:
    return learning(row) and number(row, names.EVALUATION(names.REWARD)) is not None


def ends_of(rows: Rows) -> tuple[Table, Table] | None:
    """The evaluations before and after the run, where they are known."""
    return rows.ends if isinstance(rows, History) else None


def span(rows: Rows, count: int) -> str:
    """The newest `count` rows as text: "steps 8–12"."""
    last = rows[-count:]
    return f"steps {step_of(last[:1])}–{step_of(rows)}" if len(last) > 1 else f"step {step_of(rows)}"
