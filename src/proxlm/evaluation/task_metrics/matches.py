"""How well an answer matches the right ones, text by text: exact match, SQuAD's F1, ROUGE."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.metrics import words_of
from proxlm.evaluation.task_metrics.answers import Answer, as_compared
from proxlm.evaluation.task_metrics.measured import Metric, of_each

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(metrics: MetricSettings) -> Metric:
    """1 where the answer is one of the right ones, apart from white space around it."""

    def score(answer: Answer) -> float:
        if answer.read is None:
            return 0.0
        given = as_compared(answer.read, metrics.ignore_case)
        return float(any(as_compared(right, metrics.ignore_case) == given for right in answer.right))

    return of_each("exact_match", score)


def squad_exact(metrics: MetricSettings) -> Metric:
    """1 where the answer is a right one after SQuAD's normalisation (Rajpurkar et al. 2016)."""
    words = squad_words(metrics.language)
    return of_each("squad_exact", _best(lambda given, right: float(words(given) == words(right))))


def squad_f1(metrics: MetricSettings) -> Metric:
    """F1 of the words of the answer and of the nearest right one, after SQuAD's normalisation."""
    words = squad_words(metrics.language)
    return of_each("squad_f1", _best(lambda given, right: word_f1(words(given), words(right))))


def squad_words(language: str) -> Callable[[str], list[str]]:
    """The words that SQuAD's script compares: lower case, without punctuation and without a, an, the.

    Chinese: single characters and Latin words, without punctuation, as there are no spaces to split at.
    """
    if language == "zh":
        return lambda text: [
            word for word in words_of(text.lower()) if unicodedata.category(word[0])[0] not in "PS"
        ]
    return lambda text: _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def word_f1(given: Sequence[str], right: Sequence[str]) -> float:
    """2 PR / (P + R) of two bags of words; without words in one of them 1 if both are empty, else 0 (SQuAD 2.0)."""
    if not given or not right:
        return float(given == right)
    common = (Counter(given) & Counter(right)).total()
    return 2 * common / (len(given) + len(right))


def rouge(kind: str) -> Callable[[MetricSettings], Metric]:
    """A metric: ROUGE's F1 against the nearest right answer (Lin 2004), as rouge-score computes it.

    Args:
        kind: "rouge1", "rouge2" or "rougeL".
    """

    def build(metrics: MetricSettings) -> Metric:
        from rouge_score.rouge_scorer import RougeScorer

        scorer: Any = RougeScorer([kind], tokenizer=_Words() if metrics.language == "zh" else None)

        def score(answer: Answer) -> float:
            return float(scorer.score_multi(list(answer.right), answer.answer)[kind].fmeasure)

        return of_each(kind, score)

    return build


class _Words:
    """A tokeniser for rouge-score, whose own knows a-z and 0-9 alone."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text.casefold())


def _best(compare: Callable[[str, str], float]) -> Callable[[Answer], float]:
    def score(answer: Answer) -> float:
        return 0.0 if answer.read is None else max(compare(answer.read, right) for right in answer.right)

    return score
