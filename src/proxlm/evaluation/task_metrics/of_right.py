"""What is made of whether each response is right: pass@k, and how far confidence can be trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.intervals import mean_of_rewards
from proxlm.evaluation.metrics import calibration_error
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured, of_values

OfRight = Callable[[Sequence[Answer], Sequence[bool], Bootstrap], Measured]
"""Responses, which of them are right, and the samples of their prompts → numbers."""
Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
_BINS = 10


def pass_at_k(metrics: MetricSettings) -> OfRight:
    """For each k the probability that one of k responses to a prompt is right; where a prompt has k or more."""

    def measure(answers: Sequence[Answer], right: Sequence[bool], _: Bootstrap) -> Measured:
        of_prompt: dict[int, list[bool]] = {}
        for answer, one in zip(answers, right, strict=True):
            of_prompt.setdefault(answer.prompt, []).append(one)
        estimates = {}
        for k in dict.fromkeys(metrics.k):
            values = [passes(len(some), sum(some), k) for some in of_prompt.values() if len(some) >= k]
            if values:
                estimates[f"pass@{k}"] = mean_of_rewards(values)
        return Measured(estimates)

    return measure


def passes(n: int, right: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k): that one of k drawn from n, of which c are right, is right (Chen et al. 2021)."""
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def calibration(metrics: MetricSettings) -> OfRight:
    """The expected calibration error of the confidence in responses, in ten bins, and the mean confidence."""
    confidence = _stated(metrics.confidence_pattern) if metrics.confidence == "stated" else _probability

    def measure(answers: Sequence[Answer], right: Sequence[bool], bootstrap: Bootstrap) -> Measured:
        found = [confidence(answer) for answer in answers]
        means = of_values({"confidence": found}, bootstrap)
        given = of_values({"confidence_given": [float(one is not None) for one in found]}, bootstrap)
        estimates = {**means.estimates, **given.estimates}
        sure = np.array([math.nan if one is None else one for one in found])
        there, outcomes = ~np.isnan(sure), np.array(right, dtype=np.float64)
        if there.any():
            value = calibration_error(sure[there].tolist(), outcomes[there].tolist(), _BINS, lowest=0.0)
            estimates |= bootstrap.intervals({"calibration_error": value}, _resampled(sure, outcomes, there))
        return Measured(estimates, means.values)

    return measure


def _resampled(sure: Numbers, outcomes: Numbers, there: Mask) -> Callable[[Counts], Mapping[str, float]]:
    """The error from how often each response counts."""
    bins = np.minimum(_BINS - 1, (sure[there] * _BINS).astype(np.int64))
    gaps = outcomes[there] - sure[there]

    def statistic(counts: Counts) -> Mapping[str, float]:
        counted = counts[there]
        if not counted.sum():
            return {"calibration_error": math.nan}
        error = np.abs(np.bincount(bins, weights=counted * gaps)).sum() / counted.sum()
        return {"calibration_error": float(error)}

    return statistic


def _stated(pattern: str) -> Callable[[Answer], float | None]:
    """The confidence that a response states last; None: it states none from 0 to 1."""
    find = re.compile(pattern)

    def read(answer: Answer) -> float | None:
        found = [match[1] for match in find.finditer(answer.text)]
        text = (found[-1] or "").strip() if found else ""
        percent = text.endswith("%")
        try:
            number = float(text.rstrip("% "))
        except ValueError:
            return None
        number = number / 100 if percent or number > 1 else number
        return number if 0 <= number <= 1 else None

    return read


def _probability(answer: Answer) -> float | None:
    return None if answer.logprob is None else min(1.0, math.exp(answer.logprob))
