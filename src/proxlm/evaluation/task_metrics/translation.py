"""BLEU and chrF of all responses together, as sacreBLEU computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.task_metrics.answers import Answer
from proxlm.evaluation.task_metrics.measured import Measured, Metric

OF_CORPUS = ("bleu", "chrf", "chrf++")
Streams = tuple[list[str], list[list[str | None]]]
"""Given answers [n], and the i-th right answer of each in the i-th list; None: it has no such."""


def corpus_metric(name: str, language: str) -> Any:
    """sacreBLEU's metric: BLEU (Papineni et al. 2002; Post 2018), chrF (Popović 2015) or chrF++; 0 to 100.

    Args:
        name: One of OF_CORPUS.
        language: "zh": BLEU's words are single Chinese characters.
    """
    if name == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(tokenize="zh" if language == "zh" else "13a", force=True)
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2 if name == "chrf++" else 0)


def streams_of(rows: Iterable[Mapping[str, Any]]) -> Streams:
    """What sacreBLEU takes of rows with an answer and right ones."""
    every = [(str(row.get("answer") or ""), list(row.get("right") or ())) for row in rows]
    most = max(len(right) for _, right in every)
    streams = [[right[i] if i < len(right) else None for _, right in every] for i in range(most)]
    return [given for given, _ in every], streams


def of_corpus(name: str) -> Callable[[MetricSettings], Metric]:
    """A metric of all responses together, with its bootstrap interval."""

    def build(metrics: MetricSettings) -> Metric:
        metric = corpus_metric(name, metrics.language)

        def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
            given, streams = streams_of({"answer": answer.read, "right": answer.right} for answer in answers)
            score = metric.corpus_score(given, streams).score
            # What its own significance test resamples: the counts of each text.
            counts_of_texts = np.array(metric._extract_corpus_statistics(given, streams))

            def resampled(counts: Counts) -> Mapping[str, float]:
                return {name: metric._compute_score_from_stats((counts @ counts_of_texts).tolist()).score}

            found = bootstrap.intervals({name: float(score)}, resampled)
            return Measured(found, notes={name: str(metric.get_signature())})

        return measure

    return build
