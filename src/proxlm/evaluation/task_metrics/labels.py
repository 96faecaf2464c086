"""The classes of a classification, and whether every record has exactly one of them."""

from __future__ import annotations

from collections.abc import Sequence

from proxlm.config.metrics import MetricSettings
from proxlm.errors import DataError
from proxlm.evaluation.task_metrics.answers import as_compared
from proxlm.text import listed, shown
from proxlm.types import Prompt

# So many different answers are no classes any more.
MOST_CLASSES = 200


def labels_of(
    metrics: MetricSettings, prompts: Sequence[Prompt], right: Sequence[tuple[str, ...]]
) -> list[str]:
    """The classes: those of the settings, else the right answers in order of the alphabet.

    Args:
        metrics: The section [metrics].
        prompts: The held-out prompts.
        right: The right answers of each.

    Raises:
        DataError: A record has several right answers, or one that is no class; or there are too many.
    """
    known = {as_compared(label, metrics.ignore_case): label.strip() for label in metrics.labels}
    found: dict[str, str] = {}
    for prompt, answers in zip(prompts, right, strict=True):
        compared = {as_compared(answer, metrics.ignore_case): answer.strip() for answer in answers}
        where = f"the record of prompt {shown(prompt.text, 40)!r}"
        if len(compared) > 1:
            raise DataError(
                f"metrics.use: {where} has {len(compared)} right answers; a class is a single one"
            )
        if "" in compared:
            raise DataError(f"metrics.answer_fields: {where} has an empty text, which is no class")
        if known and not compared.keys() <= known.keys():
            raise DataError(
                f"metrics.labels: {where} has {shown(next(iter(compared)), 40)!r}, which is none of"
                f" {listed(metrics.labels, most=8)}"
            )
        found |= {key: found.get(key, label) for key, label in compared.items()}
    if len(found) > MOST_CLASSES:
        raise DataError(
            f"metrics.answer_fields: {len(found)} different right answers are no classes (at most {MOST_CLASSES});"
            " exact_match or squad_f1 compares texts"
        )
    return list(known.values()) or sorted(found.values())
