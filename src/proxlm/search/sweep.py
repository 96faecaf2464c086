"""A sweep: every combination of some settings, each trained with several seeds, and their table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxlm.errors import ConfigError, RunError, UserError
from proxlm.evaluation.intervals import mean_with_interval
from proxlm.evaluation.tables import Table
from proxlm.runlog.best_values import Best
from proxlm.runlog.lock import is_held, locked
from proxlm.runlog.metric_names import KL
from proxlm.runlog.text import number
from proxlm.search.folder import alone
from proxlm.search.points import grid, in_short, in_words, own_values, settings_with
from proxlm.search.search import Train, read_numbers, trained_once
from proxlm.search.space import Space, Values
from proxlm.text import shown


@dataclass
class Combination:
    """One combination of a sweep. runs: The numbers of its finished runs by seed; reason: why one has failed."""

    values: Values
    runs: dict[int, dict[str, float]] = field(default_factory=dict)
    reason: str = ""


class Sweep:
    """The combinations of a space, trained in a folder that several processes may work on.

    Args:
        base: The recipe's settings.
        space: Lists of values.
        seeds: Runs of each combination.
        folder: The sweep's folder, which is there.
        train: Trains one run.

    Raises:
        ConfigError: A combination is refused by the job's own checks; it is named.
    """

    def __init__(self, base: Any, space: Space, seeds: int, folder: Path, train: Train) -> None:
        self.base, self.space, self.folder, self._train = base, space, folder, train
        self.seeds = range(base.run.seed, base.run.seed + seeds)
        self.combinations = [Combination(values) for values in grid(base, space, most=10_000)]
        self.settings = [self._checked(one.values) for one in self.combinations]

    def _checked(self, values: Values) -> Any:
        try:
            return settings_with(self.base, values, self.space)
        except ConfigError as error:
            raise ConfigError(f"over: {in_words(values)} is refused: {error}") from None

    def of(self, i: int) -> Path:
        """The folder of a combination, whose name counts from 1."""
        return self.folder / f"{i + 1:04d}"

    def work(self) -> None:
        """Train the combinations that are not finished, and that no other process is at."""
        for i, one in enumerate(self.combinations):
            with self._taken(i) as mine:
                if not mine:
                    continue
                print(f"\n{i + 1} of {len(self.combinations)}: {in_words(one.values)}", flush=True)
                try:
                    for seed in self.seeds:
                        trained_once(self._train, self.settings[i], self.of(i), seed)
                except UserError as error:
                    one.reason = str(error)
                    print(f"{i + 1} of {len(self.combinations)}: failed: {error}", flush=True)

    @contextmanager
    def _taken(self, i: int) -> Iterator[bool]:
        """Whether a combination is left to do, and is held by this process while the context lasts."""
        with ExitStack() as held:
            with alone(self.folder):  # or two could find it free, and one of them fail to lock it
                done = all((self.of(i) / f"seed-{seed}.json").exists() for seed in self.seeds)
                self.of(i).mkdir(exist_ok=True)
                mine = not done and not is_held(self.of(i))
                if mine:
                    held.enter_context(locked(self.of(i)))
            yield mine

    def read(self) -> list[Combination]:
        """The combinations with what is finished of them."""
        for i, one in enumerate(self.combinations):
            files = {seed: self.of(i) / f"seed-{seed}.json" for seed in self.seeds}
            one.runs = {seed: read_numbers(file) for seed, file in files.items() if file.exists()}
        return self.combinations

    def reference(self) -> int:
        """The combination that the others are compared with: the recipe's own, else the first."""
        own = own_values(self.base, self.space)
        return next((i for i, one in enumerate(self.combinations) if one.values == own), 0)


def sweep_table(sweep: Sweep, objective: tuple[str, Best]) -> Table:
    """A row for each combination, the best mean first: means over seeds, and the difference from the reference.

    Raises:
        RunError: The runs have no such number.
    """
    name, best = objective
    found, reference = sweep.read(), sweep.reference()
    if not any(name in run for one in found for run in one.runs.values()) and any(one.runs for one in found):
        there = sorted(next(iter(next(one for one in found if one.runs).runs.values())))
        raise RunError(f"objective: the runs have no {shown(name)}; they have {', '.join(there[:12])}, …")
    sign = -1 if best == "highest" else 1
    order = sorted(range(len(found)), key=lambda i: (sign * _mean(found[i], name, sign), i))
    metrics = [
        name,
        *([KL] if name != KL and any(KL in run for one in found for run in one.runs.values()) else []),
    ]
    compared = ["difference", *(["95% interval"] if len(sweep.seeds) > 1 else [])]
    head = [*(one.key for one in sweep.space), *metrics, *compared, ""]
    rows = [_row(sweep, found[i], found[reference], metrics, i == reference) for i in order]
    own = in_words(found[reference].values)
    notes = [f"(means over {len(sweep.seeds)} seeds; difference: seed by seed, from {own})"]
    if len(sweep.seeds) > 1:
        luck = "the best of many is too good, for it was chosen for its luck, too"
        notes.append(f"(intervals: Student's t over the seeds, 95%; {luck})")
    return Table(head, rows, f"{len(found)} combinations, the best first", notes)


def _mean(one: Combination, name: str, sign: int) -> float:
    values = _values(one, name)
    return math.fsum(values.values()) / len(values) if values else math.inf * sign


def _values(one: Combination, name: str) -> dict[int, float]:
    """Of each finished run that has the metric, by seed."""
    return {seed: run[name] for seed, run in one.runs.items() if name in run}


def _row(
    sweep: Sweep, one: Combination, reference: Combination, metrics: Sequence[str], is_reference: bool
) -> list[str]:
    cells = [in_short(one.values[p.key]) if p.key in one.values else "–" for p in sweep.space]
    means = [list(_values(one, name).values()) for name in metrics]
    cells += [str(mean_with_interval(values)) if values else "–" for values in means]
    own, other = _values(one, metrics[0]), _values(reference, metrics[0])
    leads = [] if is_reference else [own[seed] - other[seed] for seed in own if seed in other]
    lead = mean_with_interval(leads) if leads else None
    cells.append(f"{lead.mean:+.3g}" if lead else "–")
    if len(sweep.seeds) > 1:
        cells.append(f"{number(lead.low)} to {number(lead.high)}" if lead and len(leads) > 1 else "–")
    left = len(sweep.seeds) - len(one.runs)
    return [*cells, f"failed: {one.reason}" if one.reason else f"{left} runs left" if left else ""]


def as_json(sweep: Sweep) -> list[dict[str, Any]]:
    """The combinations with all numbers of their runs."""
    return [
        {"values": one.values, "folder": str(sweep.of(i)), "runs": {str(seed): run for seed, run in one.runs.items()},
         "reason": one.reason}
        for i, one in enumerate(sweep.combinations)
    ]  # fmt: skip
