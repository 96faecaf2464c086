"""Differences of metrics that are of all responses together, BLEU and chrF, with sacreBLEU's own paired test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.task_metrics.translation import OF_CORPUS, Streams, corpus_metric, streams_of
from proxlm.runlog import metric_names as names

Row = Mapping[str, Any]
# The key of a row that says which metrics are of all rows together, and how their words are found.
OF_ALL = "of_all"
RESAMPLES, TRIALS = 1000, 10_000


def corpus_metrics(own: Sequence[Row], other: Sequence[Row]) -> dict[str, tuple[str, bool]]:
    """The metrics of all rows that both systems have, none without sacreBLEU.

    Returns:
        By the metric's name: what `corpus_difference` is asked for, and whether of greedy responses.
    """
    found: dict[str, tuple[str, bool]] = {}
    for greedy in (False, True):
        sides = [_side(row, greedy) for rows in (own, other) for row in rows]
        asked = sides[0].get(OF_ALL)
        if not isinstance(asked, Mapping) or any(side.get(OF_ALL) != asked for side in sides):
            continue
        if not all(_has_answers(side) for side in sides) or not find_spec("sacrebleu"):
            continue
        for name in OF_CORPUS:
            if asked.get(name) in ("en", "zh"):
                key = names.GREEDY(names.TASK(name)) if greedy else names.TASK(name)
                found[key] = (f"{name}/{asked[name]}", greedy)
    return found


def _has_answers(side: Row) -> bool:
    right = side.get("right")
    return isinstance(right, list | tuple) and bool(right) and all(isinstance(one, str) for one in right)


def corpus_difference(
    what: str, greedy: bool, own: Sequence[Row], other: Sequence[Row], seed: int
) -> tuple[float, float, float, float | None]:
    """A metric of one system less that of another, its 95% bootstrap interval over prompts, and a p-value.

    The p-value is that of sacreBLEU's paired approximate randomisation (Riezler and Maxwell 2005): responses to a
    prompt are swapped by chance. None where prompts have several responses, which no swap of single ones fits.

    Args:
        what: As `corpus_metrics` gives it.
        greedy: Whether of greedy responses.
        own: The rows of one system, in the order of the prompts.
        other: Those of the other, row by row on the same prompts.
        seed: Of the resamples.
    """
    name, _, language = what.partition("/")
    metric = corpus_metric(name, language)
    pairs = [streams_of(_side(row, greedy) for row in rows) for rows in (own, other)]
    counts = [np.array(metric._extract_corpus_statistics(*pair)) for pair in pairs]

    def lead(weights: Counts) -> float:
        here, there = (
            float(metric._compute_score_from_stats((weights @ one).tolist()).score) for one in counts
        )
        return here - there

    prompts = [str(row.get("prompt_id")) for row in own]
    found = lead(np.ones(len(prompts), dtype=np.int64))
    over = Bootstrap(prompts, RESAMPLES, seed).intervals({"lead": found}, lambda w: {"lead": lead(w)})["lead"]
    single = len(set(prompts)) == len(prompts) and pairs[0][1] == pairs[1][1] and found != 0
    return found, over.low, over.high, _swapped_p(metric, pairs) if single else None


def _swapped_p(metric: Any, pairs: Sequence[Streams]) -> float:
    from sacrebleu.significance import PairedTest

    (own, references), (other, _) = pairs
    test = PairedTest([("other", other), ("own", own)], {"it": metric}, references, "ar", TRIALS)
    _, scores = test()
    return next(float(found[1].p_value) for name, found in scores.items() if name != "System")


def _side(row: Row, greedy: bool) -> Row:
    side = row.get("greedy") if greedy else row
    return side if isinstance(side, Mapping) else {}
