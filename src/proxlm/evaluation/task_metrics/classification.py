"""Metrics of classes: precision, recall and F1, over classes and of each, and which was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.results import Confusion
from proxlm.evaluation.task_metrics.answers import Answer, as_compared
from proxlm.evaluation.task_metrics.measured import Measured, Metric, of_values

# The means over classes, and what the number of one class is called.
NUMBERS = (("precision", "precision"), ("recall", "recall"), ("macro_f1", "f1"))
# With more classes, only their mean is reported.
MOST_LISTED = 20


class Classes:
    """Answers as numbers of classes.

    Args:
        labels: The K classes.
        ignore_case: Whether upper and lower case are the same.
    """

    def __init__(self, labels: Sequence[str], ignore_case: bool) -> None:
        self.labels, self._ignore_case = list(labels), ignore_case
        self._numbers = {as_compared(label, ignore_case): number for number, label in enumerate(labels)}

    def right(self, answers: Sequence[Answer]) -> list[int]:
        """The class of each record."""
        return [self._numbers[as_compared(answer.right[0], self._ignore_case)] for answer in answers]

    def given(self, answers: Sequence[Answer]) -> list[int]:
        """The class that each response names; K: none."""
        none = len(self.labels)
        return [self._numbers.get(as_compared(answer.answer, self._ignore_case), none) for answer in answers]


def accuracy(classes: Classes) -> Metric:
    """The share of responses that name the right class."""

    def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        pairs = zip(classes.right(answers), classes.given(answers), strict=True)
        return of_values({"accuracy": [float(right == given) for right, given in pairs]}, bootstrap)

    return measure


def confusion(classes: Classes) -> Metric:
    """Which class was named how often where which was right."""

    def measure(answers: Sequence[Answer], _: Bootstrap) -> Measured:
        from sklearn.metrics import confusion_matrix

        every = range(len(classes.labels) + 1)
        counts = confusion_matrix(classes.right(answers), classes.given(answers), labels=list(every))
        return Measured(confusion=Confusion(classes.labels, counts[:-1].tolist()))

    return measure


def of_classes(classes: Classes, names: Sequence[str]) -> Metric:
    """Unweighted means over classes of a number of each, and of up to 20 classes the number of each.

    A class counts if it is right or named somewhere; one that has no number (nothing named, or nothing right) has 0.
    A response that names no class is wrong, and no class.

    Args:
        classes: The classes.
        names: Some of "precision", "recall" and "macro_f1".
    """
    labels = classes.labels
    used = [(which, NUMBERS[which][0], NUMBERS[which][1]) for which in range(3) if NUMBERS[which][0] in names]

    def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        from sklearn.metrics import precision_recall_fscore_support

        right, given = classes.right(answers), classes.given(answers)
        present = sorted({*right, *given} - {len(labels)})
        numbers = precision_recall_fscore_support(right, given, labels=present, zero_division=0)
        values: dict[str, float] = {}
        for which, name, of_one in used:
            values[name] = float(numbers[which].mean())
            if len(labels) <= MOST_LISTED:
                named = zip(present, numbers[which], strict=True)
                values |= {f"{of_one}/{labels[i]}": float(value) for i, value in named}
        pairs = np.array(right) * (len(labels) + 1) + np.array(given)

        def resampled(counts: Counts) -> Mapping[str, float]:
            matrix = np.bincount(pairs, weights=counts, minlength=len(labels) * (len(labels) + 1))
            every = class_scores(matrix.reshape(len(labels), -1).astype(np.float64))
            there = every.there
            found: dict[str, float] = {}
            for which, name, of_one in used:
                found[name] = float(every.numbers[which][there].mean())
                found |= {f"{of_one}/{labels[i]}": float(every.numbers[which][i]) for i in present}
            return found

        return Measured(bootstrap.intervals(values, resampled))

    return measure


@dataclass(frozen=True)
class ClassScores:
    """Numbers of K classes.

    Attributes:
        numbers: [3, K]: precision, recall and F1; 0 where one has none.
        there: [K]: whether a class is right or named somewhere.
    """

    numbers: npt.NDArray[np.float64]
    there: npt.NDArray[np.bool_]


def class_scores(matrix: npt.NDArray[np.float64]) -> ClassScores:
    """The numbers of classes from how often each was named for which.

    Args:
        matrix: [K, K + 1], right classes by row, given ones by column, the last one for no class.
    """
    hits, right, given = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)[:-1]
    numbers = [
        np.divide(above, below, out=np.zeros(len(matrix)), where=below > 0)
        for above, below in ((hits, given), (hits, right), (2 * hits, right + given))
    ]
    return ClassScores(np.array(numbers), right + given > 0)
