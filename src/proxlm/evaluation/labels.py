"""A judge of single responses on held-out labels: scores, classes, or labels of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from proxlm.data.labelled import Labelled
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.differences import Difference
from proxlm.evaluation.intervals import (
    Estimate,
    correlation,
    mean_of_rewards,
    rank_correlation,
    wilson_interval,
)
from proxlm.evaluation.metrics import calibration_error
from proxlm.evaluation.results import Evaluation
from proxlm.evaluation.task_metrics.classification import class_scores
from proxlm.runlog import metric_names as names
from proxlm.runlog.metric import Metric, MetricFamily

_RESAMPLES = 1000

# Records, and what the judge says of each: its scores, or the probabilities of the classes, or of the steps.
Answers = Sequence[tuple[Labelled, Sequence[float]]]


def evaluation_of_scores(
    name: str, model: str, fields: Sequence[str], answers: Answers, failed: int = 0
) -> Evaluation:
    """Correlations and errors of scores; of several fields one metric each, by the field's name.

    Args:
        name: What the judge is called in the table.
        model: Where it comes from.
        fields: The names of the scores.
        answers: The records and their scores.
        failed: How many could not be judged.
    """
    metrics: dict[str, Estimate] = {}
    for k, field in enumerate(fields):
        pairs = [(said[k], found.numbers[k]) for found, said in answers if not math.isnan(found.numbers[k])]
        for metric, family, value in _of_pairs(pairs):
            metrics[metric if len(fields) == 1 else family(field)] = value
    rows = [
        _row(found) | {"scores": dict(zip(fields, said, strict=True)), "labels": _named(fields, found)}
        for found, said in answers
    ]
    return Evaluation(name, model, metrics, [], len(answers), failed, rows)


def _of_pairs(
    pairs: Sequence[tuple[float, float]],
) -> list[tuple[Metric, MetricFamily, Estimate]]:
    if not pairs:
        return []
    said, wanted = zip(*pairs, strict=True)
    errors = [a - b for a, b in pairs]
    found = [
        (names.SQUARED_ERROR, names.SQUARED_ERROR_OF, mean_of_rewards([error**2 for error in errors])),
        (names.ABSOLUTE_ERROR, names.ABSOLUTE_ERROR_OF, mean_of_rewards([abs(error) for error in errors])),
    ]
    for metric, family, value in (
        (names.PEARSON, names.PEARSON_OF, correlation(said, wanted)),
        (names.SPEARMAN, names.SPEARMAN_OF, rank_correlation(said, wanted)),
    ):
        if value is not None:
            found.append((metric, family, value))
    return found


def _named(fields: Sequence[str], found: Labelled) -> dict[str, float | None]:
    return {
        field: None if math.isnan(value) else value
        for field, value in zip(fields, found.numbers, strict=True)
    }


def evaluation_of_classes(
    name: str, model: str, classes: Sequence[str], answers: Answers, failed: int = 0, seed: int = 0
) -> Evaluation:
    """Accuracy, macro-F1 with a bootstrap interval, log loss and calibration of classes; accuracy also by slice.

    Args:
        name: What the judge is called in the table.
        model: Where it comes from.
        classes: The names of the classes.
        answers: The records and the probabilities of the classes.
        failed: How many could not be judged.
        seed: Of the bootstrap samples.
    """
    wanted = [int(found.numbers[0]) for found, _ in answers]
    metrics = _of_probabilities(wanted, [said for _, said in answers])
    if names.MACRO_F1 in metrics:
        given = [_likeliest(said) for _, said in answers]
        f1 = partial(macro_f1, np.array(wanted), np.array(given), len(classes))
        bootstrap = Bootstrap(range(len(wanted)), _RESAMPLES, seed)
        found_f1: dict[str, float] = {names.MACRO_F1: metrics[names.MACRO_F1].mean}
        metrics |= bootstrap.intervals(found_f1, lambda counts: {names.MACRO_F1: f1(counts)})
    right = [(found.slice, float(_likeliest(said) == int(found.numbers[0]))) for found, said in answers]
    for part in dict.fromkeys(part for part, _ in right if part):
        own = [value for other, value in right if other == part]
        metrics[names.ACCURACY_SLICE(part)] = wilson_interval(sum(own), len(own))
    rows = [
        _row(found)
        | {
            "class": classes[int(found.numbers[0])],
            "answer": classes[_likeliest(said)],
            "probabilities": dict(zip(classes, said, strict=True)),
            "metrics": {
                names.ACCURACY: float(_likeliest(said) == int(found.numbers[0])),
                names.LOG_LOSS: _log_loss(said, int(found.numbers[0])),
            },
        }
        for found, said in answers
    ]
    return Evaluation(name, model, metrics, [], len(answers), failed, rows)


def macro_f1(wanted: Counts, given: Counts, classes: int, counts: Counts | None = None) -> float:
    """The mean over classes of F1, of the classes that are right or given somewhere.

    Args:
        wanted: [n] the right classes.
        given: [n] the answers.
        classes: K.
        counts: [n] how often each record counts; None: once.
    """
    pairs = np.bincount(wanted * (classes + 1) + given, weights=counts, minlength=classes * (classes + 1))
    scores = class_scores(pairs.reshape(classes, -1).astype(np.float64))
    return float(scores.numbers[2][scores.there].mean())


def macro_f1_difference(
    words: Evaluation, model: Evaluation, classes: Sequence[str], seed: int
) -> Difference:
    """Macro-F1 of the second, less that of the first, on the same records in the same order; a bootstrap interval."""
    number = {name: i for i, name in enumerate(classes)}
    wanted = np.array([number[row["class"]] for row in words.responses])
    given = [np.array([number[row["answer"]] for row in one.responses]) for one in (words, model)]

    def lead(counts: Counts | None = None) -> float:
        base, own = (macro_f1(wanted, answers, len(classes), counts) for answers in given)
        return own - base

    bootstrap = Bootstrap(range(len(wanted)), _RESAMPLES, seed)
    found = bootstrap.intervals({"lead": lead()}, lambda counts: {"lead": lead(counts)})["lead"]
    return Difference(names.MACRO_F1, model.name, words.name, len(wanted), found, None, None, None, None)


def evaluation_of_steps(name: str, model: str, answers: Answers, failed: int = 0) -> Evaluation:
    """As of two classes, over all steps; and how often the first wrong step, or that all are right, is found.

    A step is right where its label, or its probability, is above ½. Steps of one response are not independent, so
    intervals over steps are too narrow.

    Args:
        name: What the judge is called in the table.
        model: Where it comes from.
        answers: The records and how likely each step is right.
        failed: How many could not be judged.
    """
    wanted = [int(label > 0.5) for found, _ in answers for label in found.numbers]
    metrics = _of_probabilities(wanted, [(1 - p, p) for _, said in answers for p in said])
    found_first = [_first_wrong(said) == _first_wrong(found.numbers) for found, said in answers]
    metrics[names.FIRST_ERROR] = wilson_interval(sum(found_first), len(found_first))
    rows = [_row(found) | {"labels": [*found.numbers], "steps": [*said]} for found, said in answers]
    return Evaluation(name, model, metrics, [], len(answers), failed, rows)


def _first_wrong(steps: Sequence[float]) -> int:
    return next((i for i, step in enumerate(steps) if step <= 0.5), -1)


def _of_probabilities(wanted: Sequence[int], said: Sequence[Sequence[float]]) -> dict[str, Estimate]:
    answers = [_likeliest(row) for row in said]
    right = [float(answer == label) for answer, label in zip(answers, wanted, strict=True)]
    error = calibration_error([max(row) for row in said], right, lowest=1 / len(said[0]))
    losses = [_log_loss(row, label) for row, label in zip(said, wanted, strict=True)]
    metrics: dict[str, Estimate] = {names.ACCURACY: wilson_interval(sum(right), len(right))}
    if (score := _macro_f1(wanted, answers)) is not None:
        metrics[names.MACRO_F1] = Estimate(score, score, score)
    metrics[names.LOG_LOSS] = mean_of_rewards(losses)
    metrics[names.CALIBRATION_ERROR] = Estimate(error, error, error)
    return metrics


def _macro_f1(wanted: Sequence[int], answers: Sequence[int]) -> float | None:
    """None if scikit-learn is not installed."""
    try:
        from sklearn.metrics import f1_score
    except ImportError:
        return None
    return float(f1_score(wanted, answers, average="macro", zero_division=0.0))


def _log_loss(probabilities: Sequence[float], label: int) -> float:
    return -math.log(max(probabilities[label], 1e-12))


def _likeliest(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=lambda i: probabilities[i])


def _row(found: Labelled) -> dict[str, Any]:
    row = {"record": found.where, "prompt": found.completion.prompt, "response": found.completion.text}
    return {**row, "slice": found.slice} if found.slice else row
