"""A search: trials are drawn, trained seed by seed, pruned, and recorded, until there are enough."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from proxlm.config.search import SearchConfig
from proxlm.errors import RunError, UserError
from proxlm.runlog.folder import write_json_atomic
from proxlm.runlog.lock import is_held, locked
from proxlm.runlog.text import number as in_short
from proxlm.search.folder import alone
from proxlm.search.objective import objectives, planned_steps, pruned_by
from proxlm.search.points import grid, in_words, own_values, settings_with
from proxlm.search.space import Space, Values
from proxlm.search.study import Study, Trial, check_installed
from proxlm.text import shown
from proxlm.train.common.callbacks import Callback

# Trains a job with these settings, or goes on with the run in their folder, and returns the numbers of the run.
Train = Callable[[Any, Sequence[Callback]], Mapping[str, float]]

# A search whose first trials all fail is not a search.
_FAILURES = 3


class PrunedError(Exception):
    """Ends the run of a trial that its pruner has given up."""


class _Watch(Callback):
    """Shows the pruner the steps of a run."""

    def __init__(self, metric: str, is_bad: Callable[[int, float], bool]) -> None:
        self._metric, self._is_bad = metric, is_bad

    def on_step(self, step: int, metrics: MutableMapping[str, float]) -> None:
        value = metrics.get(self._metric, math.nan)
        if math.isfinite(value) and self._is_bad(step, value):
            raise PrunedError(f"after step {step}: {self._metric} = {in_short(value)}")


class Search:
    """A search in its folder, which several processes may work on at the same time.

    Args:
        base: The recipe's settings.
        space: What is searched.
        config: The search's settings.
        folder: The search's folder, which is there.
        train: Trains one run.

    Attributes:
        own: The recipe's own values of the space; None: the space does not hold them.
        objectives: The metrics that trials are judged by, with "highest" or "lowest".
        planned: How many trials there will be.
    """

    def __init__(self, base: Any, space: Space, config: SearchConfig, folder: Path, train: Train) -> None:
        self.base, self.space, self.config, self.folder = base, space, config, folder
        self._train = train
        self.objectives = objectives(config.command, config.objective, config.best_is, base)
        self._pruned_by = "" if config.pruner == "none" else pruned_by(config, base, self.objectives[0])[0]
        self._grid = grid(base, space) if config.sampler == "grid" else []
        self.own = own_values(base, space)
        self._first = self.own if config.recipe_first and not self._grid else None
        self.planned = min(config.trials, len(self._grid)) if self._grid else config.trials
        self._steps = planned_steps(base)
        best_is = [best for _, best in self.objectives]
        self._new_study = partial(Study, folder, config, space, best_is, self._steps * config.seeds)
        check_installed(config)

    @cached_property
    def study(self) -> Study:
        """The trials so far. Opened when it is first needed, in a folder that has the search's plan."""
        with alone(self.folder):
            return self._new_study()

    def notes(self) -> list[str]:
        """What is worth saying before the first trial."""
        found = []
        if self._grid and len(self._grid) > self.planned:
            found.append(
                f"the grid has {len(self._grid)} combinations, of which trials = {self.planned} are tried"
            )
        if self.config.recipe_first and not self._grid and self._first is None:
            found.append("the space does not hold the recipe's own settings, so that no trial has them")
        return found

    def work(self) -> None:
        """Run trials until there are enough; half-done ones first, from their own checkpoints.

        Raises:
            RunError: The first trials have all failed.
            StoppedBySignalError: A signal has ended it; the same call goes on.
        """
        _ = self.study  # opened before its lock is taken
        while True:
            with self._taken() as number:
                if number is None:
                    return
                self._run(number)

    @contextmanager
    def _taken(self) -> Iterator[int | None]:
        """A trial that no other process has, held while the context lasts; None: none is left."""
        with ExitStack() as held:
            with alone(self.folder):
                number = self._left_behind(held)
                if number is None and len(self.study.trials()) < self.planned:
                    number = self._draw(len(self.study.trials()))
                    self.of(number).mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(self.of(number)))
            yield number

    def _left_behind(self, held: ExitStack) -> int | None:
        """A running trial that no process is at any more, now held; None: there is none."""
        for one in self.study.trials():
            folder = self.of(one.number)
            if one.state != "running" or is_held(folder):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as own:
                own.enter_context(locked(folder))
                if self.study.trials()[one.number].state == "running":  # else it has ended just now
                    held.enter_context(own.pop_all())
                    return one.number
        return None

    def _draw(self, number: int) -> int:
        if self._grid:
            return self.study.add(self._grid[number], self.base)
        return self.study.add(self._first if number == 0 else None, self.base)

    def of(self, number: int) -> Path:
        """The folder of a trial, whose name counts from 1."""
        return self.folder / "trials" / f"{number + 1:04d}"

    def _run(self, number: int) -> None:
        """Train a trial with each seed, and record what it has found."""
        values = self.study.trials()[number].values
        print(f"\ntrial {number + 1} of {self.planned}: {in_words(values)}", flush=True)
        began, seeds = time.perf_counter(), range(self.config.seeds)
        try:
            settings = settings_with(self.base, values, self.space)
            found = [self._numbers(settings, number, i) for i in seeds]
            judged = [[self.value(one, name) for one in found] for name, _ in self.objectives]
        except PrunedError as reason:
            self._give_up(number, str(reason), began, pruned=True)
        except UserError as error:
            self._give_up(number, str(error), began)
            self._check_that_some_work()
        else:
            means = [math.fsum(one) / len(one) for one in judged]
            deviations = [_standard_error(one) for one in judged]
            names = [name for name in found[0] if all(name in one for one in found)]
            numbers = {name: math.fsum(one[name] for one in found) / len(found) for name in names}
            self.study.finish(number, means, deviations, numbers, round(time.perf_counter() - began, 1))
            words = ", ".join(
                f"{name} {in_short(mean)}" for (name, _), mean in zip(self.objectives, means, strict=True)
            )
            print(f"trial {number + 1} of {self.planned}: {words}", flush=True)

    def _give_up(self, number: int, reason: str, began: float, pruned: bool = False) -> None:
        self.study.give_up(number, reason, round(time.perf_counter() - began, 1), pruned)
        print(
            f"trial {number + 1} of {self.planned}: {'pruned' if pruned else 'failed'}: {reason}", flush=True
        )

    def _check_that_some_work(self) -> None:
        trials = [one for one in self.study.trials() if one.state != "running"]
        if len(trials) >= _FAILURES and all(one.state == "failed" for one in trials):
            raise RunError(
                f"{self.folder}: all of the first {len(trials)} trials have failed: {trials[0].reason}"
            )

    def _numbers(self, settings: Any, number: int, i: int) -> dict[str, float]:
        """The numbers of a trial's run with one seed, trained if it is not finished."""
        before = i * self._steps  # more seeds are more steps of the trial
        watch = _Watch(self._pruned_by, lambda step, value: self.study.is_bad(number, before + step, value))
        return self.numbers_of(
            settings, self.of(number), self.base.run.seed + i, [watch] if self._pruned_by else []
        )

    def numbers_of(
        self, settings: Any, folder: Path, seed: int, callbacks: Sequence[Callback] = ()
    ) -> dict[str, float]:
        """The numbers of a run in `folder`, trained if it is not finished."""
        return trained_once(self._train, settings, folder, seed, callbacks)

    def value(self, numbers: Mapping[str, float], name: str) -> float:
        """A run's value of an objective. Raises RunError where it has none that is finite."""
        if name not in numbers:
            raise RunError(
                f"the run has no finite {shown(name)}; it has {', '.join(sorted(numbers)[:12])}, …"
            )
        return numbers[name]

    def ranked(self) -> list[Trial]:
        """The finished trials, the best first by the first objective."""
        sign = -1 if self.objectives[0][1] == "highest" else 1
        finished = [one for one in self.study.trials() if one.state == "finished"]
        return sorted(finished, key=lambda one: (sign * one.objective[0], one.number))

    def front(self) -> list[Trial]:
        """The finished trials that no other one is better than in every objective; of one objective the best."""
        signs = [-1 if best == "highest" else 1 for _, best in self.objectives]
        losses = {
            one.number: [s * v for s, v in zip(signs, one.objective, strict=True)] for one in self.ranked()
        }
        if len(signs) == 1:
            return self.ranked()[:1]
        return [
            one
            for one in self.ranked()
            if not any(_dominates(o, losses[one.number]) for o in losses.values())
        ]

    def settings_of(self, trial: Trial) -> Any:
        """A recipe with the settings of a trial."""
        return settings_with(self.base, trial.values, self.space)


def trained_once(
    train: Train, settings: Any, folder: Path, seed: int, callbacks: Sequence[Callback] = ()
) -> dict[str, float]:
    """The numbers of a run with this seed in `folder`/seed-SEED, from the file beside it if it is finished."""
    own = folder / f"seed-{seed}"
    done = folder / f"{own.name}.json"
    if done.exists():
        return read_numbers(done)
    run = replace(settings.run, folder=str(own), seed=seed, resume=False)
    numbers = train(replace(settings, run=run), callbacks)
    finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
    write_json_atomic(done, finite)
    return finite


def read_numbers(file: Path) -> Values:
    """What `trained_once` has written. Raises RunError."""
    try:
        return {
            str(name): float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{file}: cannot be read; remove it, and its run is made again") from error


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether losses are nowhere higher than others, and somewhere lower."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)
