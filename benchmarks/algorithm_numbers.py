"""The arithmetic of benchmarks/algorithms.py: which rate is best, and what a held-out curve is worth at a budget."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from proxlm.evaluation.intervals import Estimate, mean_with_interval

FACTOR = 3.0
MEASURES = ("objective", "reward", "greedy", "kl")


class Point(NamedTuple):
    """A held-out evaluation of a run.

    Attributes:
        tokens: That the policy had generated for training.
        seconds: CPU seconds of the training until then.
        reward: Mean, sampled as in training.
        greedy: Mean of the likeliest tokens.
        kl: To the model at the start, nats per response.
        objective: reward − β · kl.
    """

    tokens: float
    seconds: float
    reward: float
    greedy: float
    kl: float
    objective: float


def best_rate(objectives: Mapping[float, float]) -> float:
    """The rate with the highest objective; of equal ones the smallest. One that is not finite is never the best.

    Raises ValueError where none is finite.
    """
    finite = {rate: value for rate, value in objectives.items() if math.isfinite(value)}
    if not finite:
        raise ValueError(f"no rate of {', '.join(f'{rate:g}' for rate in objectives)} has trained a policy")
    return max(sorted(finite), key=lambda rate: finite[rate])


def rate_beyond(rates: Sequence[float], best: float) -> float | None:
    """The next rate beyond the edge of the grid on which the best one lies; None if it lies inside.

    The step from one rate to the next is that of the grid at this edge.
    """
    ordered = sorted(rates)
    if len(ordered) < 2:
        return None
    if best == ordered[0]:
        return _round(best * best / ordered[1])
    if best == ordered[-1]:
        return _round(best * best / ordered[-2])
    return None


def _round(rate: float) -> float:
    """Two digits, so that 3e-4 · 3e-4 / 1e-4 is 9e-4."""
    return float(f"{rate:.1e}")


def value_at(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """A curve's value at a place: linear between two evaluations, and the end's value beyond it.

    Args:
        places: Of the evaluations, ascending.
        values: There.
        place: Where the curve is read.
    """
    if len(places) != len(values) or not places:
        raise ValueError(f"a curve of {len(places)} places and {len(values)} values")
    if any(after < before for before, after in pairwise(places)):
        raise ValueError("the places of a curve must ascend")
    after = bisect_right(places, place)
    if after == 0:
        return values[0]
    if after == len(places):
        return values[-1]
    before = after - 1
    share = (place - places[before]) / (places[after] - places[before])
    return values[before] + share * (values[after] - values[before])


def at_budget(curve: Sequence[Point], budget: str, amount: float) -> dict[str, float]:
    """The measures of a run when it has used so many "tokens" or "seconds"."""
    places = [getattr(point, budget) for point in curve]
    return {name: value_at(places, [getattr(point, name) for point in curve], amount) for name in MEASURES}


def smallest_budget(curves: Mapping[str, Sequence[Sequence[Point]]], budget: str) -> float:
    """How many "tokens" or "seconds" the algorithm needs that needs the fewest: the median of its seeds' whole runs.

    The median, for a policy that collapses may use next to none of either.
    """
    return min(median(getattr(run[-1], budget) for run in runs) for runs in curves.values())


def mean_curve(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean of the seeds' curves, evaluation by evaluation."""
    return [
        Point(*(math.fsum(numbers) / len(numbers) for numbers in zip(*points, strict=True)))
        for points in zip(*runs, strict=True)
    ]


class Difference(NamedTuple):
    """How far one algorithm is from another at the end of its runs.

    Attributes:
        estimate: Mean difference over the prompts, each prompt's the mean of the seeds that had it; 95% interval.
        disjoint: Every seed of one is above every seed of the other.
    """

    estimate: Estimate
    disjoint: bool

    @property
    def apart(self) -> bool:
        """Whether both the prompts and the seeds say so."""
        return self.disjoint and not self.estimate.low <= 0 <= self.estimate.high


def difference(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> Difference:
    """Ours − theirs: for each seed a number for each prompt; of one seed both have the same prompts."""
    by_prompt: dict[str, list[float]] = {}
    for our_run, their_run in zip(ours, theirs, strict=True):
        for prompt, number in our_run.items():
            by_prompt.setdefault(prompt, []).append(number - their_run[prompt])
    per_prompt = [_mean(numbers) for numbers in by_prompt.values()]
    a, b = ([_mean(list(run.values())) for run in runs] for runs in (ours, theirs))
    return Difference(mean_with_interval(per_prompt), min(a) > max(b) or max(a) < min(b))


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def curve_of(
    rows: Sequence[Mapping[str, Any]], before: Mapping[str, float], responses: int, beta: float
) -> list[Point]:
    """A run's held-out curve.

    Args:
        rows: Of metrics.jsonl.
        before: The metrics of the model at the start.
        responses: Of each step.
        beta: Of the objective, per nat.
    """
    tokens = seconds = 0.0
    points = [_point(0.0, 0.0, before, beta)]
    for row in rows:
        tokens += row["response_length"] * responses
        seconds += row["time/cpu"]
        if "evaluation/reward" in row:
            found = {name.removeprefix("evaluation/"): v for name, v in row.items() if "evaluation/" in name}
            points.append(_point(tokens, seconds, found, beta))
    return points


def _point(tokens: float, seconds: float, found: Mapping[str, float], beta: float) -> Point:
    reward, kl = found["reward"], found["kl"]
    return Point(tokens, seconds, reward, found["greedy/reward"], kl, reward - beta * kl)
