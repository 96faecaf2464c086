"""How far systems are apart on the same prompts: every number of a response, compared prompt by prompt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from proxlm.errors import DataError
from proxlm.evaluation import tables
from proxlm.evaluation.corpus_differences import corpus_difference, corpus_metrics
from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.paired import (
    Numbers,
    assignment_p,
    bootstrap_difference,
    holm,
    seeds_and_prompts,
    sign_flip_p,
    welch_difference,
)
from proxlm.evaluation.tables import Table
from proxlm.runlog import metric_names as names
from proxlm.text import counted, shown

Row = Mapping[str, Any]
# A prompt: its id and its text.
Key = tuple[str, str]


@dataclass(frozen=True)
class Arm:
    """A system that is compared.

    Attributes:
        name: What it is called in the table.
        runs: The rows of its responses, a list for each seed; all of the same prompts.
    """

    name: str
    runs: Sequence[Sequence[Row]]


@dataclass(frozen=True)
class Difference:
    """One metric of one system, less that of the first.

    Attributes:
        metric: Its name.
        arm: The system.
        reference: The first one.
        prompts: On how many prompts both have the metric.
        estimate: The mean difference, with a 95% bootstrap interval over prompts and, where there are several, seeds.
        p: Of the permutation test: signs of the prompts' differences, or of several seeds their assignment to the
            arms; None where no prompt differs, which no test could find to differ.
        adjusted: p after Holm's correction for all rows of the table that have one.
        higher: On how many prompts it is higher than the first; of several seeds by their means. None of a metric of
            all responses together.
        lower: On how many it is lower.
        seeds: Of several seeds: the difference of their means with Welch's 95% interval over seeds; else None.
    """

    metric: str
    arm: str
    reference: str
    prompts: int
    estimate: Estimate
    p: float | None
    adjusted: float | None
    higher: int | None
    lower: int | None
    seeds: Estimate | None = None


def differences(arms: Sequence[Arm], seed: int = 0) -> list[Difference]:
    """Every metric of each arm but the first, less that of the first.

    Args:
        arms: The systems; the first is the reference.
        seed: Of the resamples.

    Raises:
        DataError: They are of different prompts.
    """
    values = [[values_by_prompt(rows, arm.name) for rows in arm.runs] for arm in arms]
    keys = list(values[0][0])
    for arm, runs in zip(arms, values, strict=True):
        for run in runs:
            _check_same(arms[0].name, keys, arm.name, run)
    found = [
        _difference(
            metric, arm.name, arms[0].name, _rows(runs, metric, keys), _rows(values[0], metric, keys), seed
        )
        for arm, runs in zip(arms[1:], values[1:], strict=True)
        for metric in _metrics([*values[0], *runs])
    ]
    done = [difference for difference in found if difference is not None]
    for arm in arms[1:]:
        done += _of_corpus(arm, arms[0], seed)
    return _corrected(done)


def _of_corpus(arm: Arm, reference: Arm, seed: int) -> Iterator[Difference]:
    """Of metrics that no single response has, such as BLEU; of single runs."""
    if len(arm.runs) > 1 or len(reference.runs) > 1:
        return
    own, other = (_responses(system.runs[0]) for system in (arm, reference))
    if own.keys() != other.keys():  # not equally many responses to each prompt
        return
    rows = list(own.values()), [other[key] for key in own]
    for metric, (what, greedy) in corpus_metrics(*rows).items():
        mean, low, high, p = corpus_difference(what, greedy, *rows, seed)
        prompts = len({key for key, _ in own})
        yield Difference(
            metric, arm.name, reference.name, prompts, Estimate(mean, low, high), p, None, None, None
        )


def values_by_prompt(rows: Sequence[Row], name: str) -> dict[Key, dict[str, float]]:
    """The numbers of each prompt: of several responses their means, for responses to one prompt are no more prompts.

    Raises:
        DataError: The rows are no responses, or there are none.
    """
    every: dict[Key, list[dict[str, float]]] = {}
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            raise DataError(f'{name}: row {number} has no "prompt": not the responses of an evaluation')
        every.setdefault(_key(row), []).append(values_of(row))
    if not every:
        raise DataError(f"{name}: no responses to compare")
    return {key: _means(values) for key, values in every.items()}


def _key(row: Row) -> Key:
    return str(row.get("prompt_id", row.get("record", ""))), str(row.get("prompt"))


def _responses(rows: Sequence[Row]) -> dict[tuple[Key, int], Row]:
    """Rows by their prompt, and by which response to it they are."""
    found: dict[tuple[Key, int], Row] = {}
    counts = Counter[Key]()
    for row in rows:
        key = _key(row)
        found[key, counts[key]] = row
        counts[key] += 1
    return found


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in values:
        for metric, value in one.items():
            found.setdefault(metric, []).append(value)
    return {metric: math.fsum(numbers) / len(numbers) for metric, numbers in found.items()}


def values_of(row: Row) -> dict[str, float]:
    """The numbers of a response by the names of their metrics, those of its greedy counterpart included.

    Of a comparison that a reward model has judged: whether it was right, and the margin.
    """
    found = dict(_of_response(row))
    if isinstance(greedy := row.get("greedy"), Mapping):
        found |= {names.GREEDY(metric): value for metric, value in _of_response(greedy)}
    chosen, rejected = row.get("chosen_score"), row.get("rejected_score")
    if _is_number(chosen) and _is_number(rejected):
        found[names.ACCURACY] = 0.5 if chosen == rejected else float(chosen > rejected)
        found[names.MARGIN] = float(chosen - rejected)
    return found


def unusable(row: Row) -> tuple[str, Any] | None:
    """The first metric of a row of responses that holds something else than a number or null, and what it holds."""
    greedy = row.get("greedy")
    sides = [row, *([greedy] if isinstance(greedy, Mapping) else [])]
    every = (pair for side in sides for pair in _named(side).items())
    return next(((name, value) for name, value in every if value is not None and not _is_number(value)), None)


def _of_response(row: Row) -> Iterator[tuple[str, float]]:
    return ((name, float(value)) for name, value in _named(row).items() if _is_number(value))


def _named(row: Row) -> dict[str, Any]:
    """What stands in a row under the names of metrics."""
    numbers: dict[str, Any] = {names.REWARD: row.get("reward")}
    components = row.get("components")
    if isinstance(components, Mapping) and len(components) > 1:
        numbers |= {names.REWARD_COMPONENT(str(key)): value for key, value in components.items()}
    numbers |= {names.KL: row.get("kl"), names.LENGTH: row.get("length")}
    if isinstance(metrics := row.get("metrics"), Mapping):
        numbers |= {str(key): value for key, value in metrics.items()}
    if isinstance(finish := row.get("finish"), str):
        numbers[names.ENDED_SHARE] = float(finish != "length")
    return numbers


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 1e300  # False for NaN


def _metrics(runs: Sequence[Mapping[Key, Mapping[str, float]]]) -> list[str]:
    """The metrics that every run has, in order."""
    every = [dict.fromkeys(name for values in run.values() for name in values) for run in runs]
    return [name for name in every[0] if all(name in others for others in every)]


def _rows(runs: Sequence[Mapping[Key, Mapping[str, float]]], metric: str, keys: Sequence[Key]) -> Numbers:
    """[seeds, prompts]; NaN where a response has no such number."""
    return np.array([[run[key].get(metric, np.nan) for key in keys] for run in runs])


def _difference(
    metric: str, arm: str, reference: str, own: Numbers, other: Numbers, seed: int
) -> Difference | None:
    there = ~np.isnan(own).any(axis=0) & ~np.isnan(other).any(axis=0)
    if not there.any():
        return None
    own, other = own[:, there], other[:, there]
    leads = own.mean(axis=0) - other.mean(axis=0)
    several = len(own) > 1 or len(other) > 1
    if several:
        of_own, of_other = own.mean(axis=1).tolist(), other.mean(axis=1).tolist()
        estimate, seeds = seeds_and_prompts(own, other, seed), welch_difference(of_own, of_other)
        p = assignment_p(of_own, of_other, seed)
    else:
        estimate, seeds, p = bootstrap_difference(leads, seed), None, sign_flip_p(leads, seed)
    return Difference(
        metric=metric,
        arm=arm,
        reference=reference,
        prompts=int(there.sum()),
        estimate=estimate,
        p=p if leads.any() else None,
        adjusted=None,
        higher=int((leads > 0).sum()),
        lower=int((leads < 0).sum()),
        seeds=seeds,
    )


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    """With Holm's correction over all that have a p-value.

    A test that could not have found anything, because nothing differs, does not count as one (Tarone 1990).
    """
    adjusted = iter(holm([difference.p for difference in found if difference.p is not None]))
    return [d if d.p is None else replace(d, adjusted=next(adjusted)) for d in found]


def _check_same(name: str, keys: Sequence[Key], other: str, run: Mapping[Key, Any]) -> None:
    missing, more = [key for key in keys if key not in run], set(run) - set(keys)
    if not missing and not more:
        return
    where, key = (name, missing[0]) if missing else (other, min(more))
    raise DataError(
        f"{shown(name)} and {shown(other)} are of different prompts: {len(missing)} of {len(keys)} are in the first"
        f' alone and {len(more)} in the other; {shown(where)} alone has {shown(key[0])} "{shown(key[1], 40)}";'
        " evaluate both on the same file of prompts"
    )


def as_text(found: Sequence[Difference]) -> str:
    """The tables as plain text."""
    nothing = "(nothing to compare: the responses have no number in common)"
    return tables.as_text(difference_tables(found)) if found else nothing


def difference_tables(found: Sequence[Difference], unit: str = "prompt") -> list[Table]:
    """A row for each metric of each arm, and what the columns are; none without differences.

    Args:
        found: The differences.
        unit: One of what was compared.
    """
    if not found:
        return []
    several = any(difference.seeds for difference in found)
    named = len({difference.arm for difference in found}) > 1
    head = [f"less {found[0].reference}", *(["of"] if named else []), "difference", "95% interval"]
    head += [*(["over seeds"] if several else []), "p", "Holm", "higher", "lower"]
    rows = [_cells(difference, named, several) for difference in found]
    return [Table(head, rows, notes=_notes(found, several, unit))]


def _cells(difference: Difference, named: bool, several: bool) -> list[str]:
    estimate, seeds = difference.estimate, difference.seeds
    cells = [
        difference.metric,
        *([difference.arm] if named else []),
        f"{estimate.mean:+.3f}",
        _range(estimate),
    ]
    if several:
        cells.append("–" if seeds is None else _range(seeds))
    return [
        *cells,
        _p(difference.p),
        _p(difference.adjusted),
        *map(_count, (difference.higher, difference.lower)),
    ]


def _range(estimate: Estimate) -> str:
    return f"{estimate.low:+.3f} to {estimate.high:+.3f}"


def _count(prompts: int | None) -> str:
    return "–" if prompts is None else str(prompts)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _notes(found: Sequence[Difference], several: bool, unit: str) -> list[str]:
    tests = sum(difference.p is not None for difference in found)
    prompts = sorted({difference.prompts for difference in found})
    count = "" if len(prompts) == 1 else f"{prompts[0]} to "
    count += counted(prompts[-1], unit)
    holm_of = (
        f"Holm: corrected for the {counted(tests, 'test')} of this table"
        if tests
        else "no row could be tested"
    )
    if several:
        return [
            f"({count}; interval: hierarchical bootstrap over seeds and {unit}s, too narrow for few seeds;",
            f"over seeds: Welch's t; p: seeds dealt to the arms in every other way; {holm_of};",
            f"higher, lower: on how many {unit}s, by the means of the seeds)",
        ]
    return [
        f"({count}, paired; interval: bootstrap; p: permutation test by signs; {holm_of};",
        f"higher, lower: on how many {unit}s)",
    ]
