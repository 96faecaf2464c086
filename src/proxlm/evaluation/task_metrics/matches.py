"""Whether an answer is a right one, text by text."""

from __future__ import annotations

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.task_metrics.answers import Answer, as_compared
from proxlm.evaluation.task_metrics.measured import Metric, of_each


def exact_match(metrics: MetricSettings) -> Metric:
    """1 where the answer is one of the right ones, apart from white space around it."""

    def score(answer: Answer) -> float:
        if answer.read is None:
            return 0.0
        given = as_compared(answer.read, metrics.ignore_case)
        return float(any(as_compared(right, metrics.ignore_case) == given for right in answer.right))

    return of_each("exact_match", score)
