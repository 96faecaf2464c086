"""BLEU and chrF of all responses together, as sacreBLEU computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured, Metric


def bleu(metrics: MetricSettings) -> Metric:
    """BLEU (Papineni et al. 2002; Post 2018), from 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    return _of_corpus("bleu", BLEU(tokenize="zh" if metrics.language == "zh" else "13a", force=True))


def chrf(word_order: int) -> Callable[[MetricSettings], Metric]:
    """A metric: chrF (Popović 2015), or with a word order of 2 chrF++, from 0 to 100."""

    def build(_: MetricSettings) -> Metric:
        from sacrebleu.metrics.chrf import CHRF

        return _of_corpus("chrf++" if word_order else "chrf", CHRF(word_order=word_order))

    return build


def _of_corpus(name: str, metric: Any) -> Metric:
    def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        given = [answer.answer for answer in answers]
        most = max(len(answer.right) for answer in answers)
        streams = [[_at(answer.right, i) for answer in answers] for i in range(most)]
        score = metric.corpus_score(given, streams).score
        # What its own significance test resamples: the counts of each text.
        counts_of_texts = np.array(metric._extract_corpus_statistics(given, streams))

        def resampled(counts: Counts) -> Mapping[str, float]:
            return {name: metric._compute_score_from_stats((counts @ counts_of_texts).tolist()).score}

        found = bootstrap.intervals({name: float(score)}, resampled)
        return Measured(found, notes={name: str(metric.get_signature())})

    return measure


def _at(right: Sequence[str], i: int) -> str | None:
    return right[i] if i < len(right) else None
