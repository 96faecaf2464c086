"""A judge of completions on held-out comparisons: how often it is right, how sure it is, and what length explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.data.preferences import Choice, Comparison
from proxlm.evaluation.intervals import Estimate, correlation, mean_with_interval, wilson_interval
from proxlm.evaluation.metrics import calibration_error
from proxlm.evaluation.results import Evaluation
from proxlm.runlog import metric_names as names


@dataclass(frozen=True)
class Judged:
    """What a judge said of held-out comparisons and choices.

    Attributes:
        comparisons: The comparisons, and for each the scores of the chosen and of the rejected completion.
        choices: The choices of one from several, and the scores of all completions of each.
        failed: How many of both are left out, because a completion could not be scored.
    """

    comparisons: Sequence[tuple[Comparison, tuple[float, float]]]
    choices: Sequence[tuple[Choice, Sequence[float]]] = ()
    failed: int = 0


def evaluation_of(name: str, model: str, judged: Judged, scores_mean_something: bool = True) -> Evaluation:
    """A judge's results: accuracy, over all and by slice; of scores that are log-odds, also margins and calibration.

    Args:
        name: What it is called in the table.
        model: Where it comes from.
        judged: What it said.
        scores_mean_something: Whether a difference of scores is a log-odds; else only their order counts.
    """
    metrics = _accuracies(judged)
    if scores_mean_something:
        metrics |= _of_scores(judged)
    return Evaluation(
        name=name,
        model=model,
        metrics=metrics,
        samples=[],  # samples.jsonl has some
        prompts=len(judged.comparisons),
        failed=judged.failed,
        responses=[_row(comparison, scores) for comparison, scores in judged.comparisons],
    )


def _accuracies(judged: Judged) -> dict[str, Estimate]:
    """Right of all, with Wilson's interval; a tie is half right."""
    right = [(found.slice, _preferred(scores)) for found, scores in judged.comparisons]
    metrics: dict[str, Estimate] = {names.ACCURACY: _share([value for _, value in right])}
    for part in dict.fromkeys(part for part, _ in right if part):
        metrics[names.ACCURACY_SLICE(part)] = _share([value for own, value in right if own == part])
    if judged.choices:
        picked = [(choice.slice, _picked(choice, scores)) for choice, scores in judged.choices]
        metrics[names.BEST_OF_N] = _share([value for _, value in picked])
        for part in dict.fromkeys(part for part, _ in picked if part):
            metrics[names.BEST_OF_N_SLICE(part)] = _share([value for own, value in picked if own == part])
    return metrics


def _of_scores(judged: Judged) -> dict[str, Estimate]:
    leads = [scores[0] - scores[1] for _, scores in judged.comparisons]
    sure = [1 / (1 + math.exp(-abs(lead))) for lead in leads]
    right = [_preferred(scores) for _, scores in judged.comparisons]
    error = calibration_error(sure, right)
    scores = [score for _, both in judged.comparisons for score in both]
    lengths = [float(len(side.text)) for found, _ in judged.comparisons for side in found.sides]
    metrics: dict[str, Estimate] = {
        names.MARGIN: mean_with_interval(leads),
        names.LOG_LOSS: mean_with_interval([_log_loss(lead) for lead in leads]),
        names.CALIBRATION_ERROR: Estimate.exactly(error),
    }
    if (found := correlation(scores, lengths)) is not None:
        metrics[names.LENGTH_CORRELATION] = found
    return metrics


def _log_loss(lead: float) -> float:
    """−log σ(lead)."""
    return max(0.0, -lead) + math.log1p(math.exp(-abs(lead)))


def _preferred(scores: tuple[float, float]) -> float:
    return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])


def _picked(choice: Choice, scores: Sequence[float]) -> float:
    """The probability that one of the highest scores, drawn evenly, is of a right completion."""
    top = [i for i, score in enumerate(scores) if score == max(scores)]
    return sum(i < choice.right for i in top) / len(top)


def _share(values: Sequence[float]) -> Estimate:
    return wilson_interval(math.fsum(values), len(values))


def _row(found: Comparison, scores: tuple[float, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "record": found.where,
        "prompt": found.chosen.prompt,
        "chosen": found.chosen.text,
        "rejected": found.rejected.text,
        "chosen_score": scores[0],
        "rejected_score": scores[1],
    }
    return {**row, "slice": found.slice} if found.slice else row
