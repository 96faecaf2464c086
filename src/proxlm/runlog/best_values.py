"""Which value of a metric is the better one, declared once for what orders runs by it."""

from __future__ import annotations

from typing import Literal

from proxlm.config.early_stopping import BETTER
from proxlm.runlog import metric_names as names

Best = Literal["highest", "lowest"]

HIGHEST = (
    names.REWARD, names.REWARD_COMPONENT, names.EPISODE_RETURN, names.EXPLAINED_VARIANCE, names.ACCURACY,
    names.ACCURACY_SLICE, names.BEST_OF_N,
    names.BEST_OF_N_SLICE, names.MARGIN, names.MACRO_F1, names.FIRST_ERROR, names.PEARSON, names.PEARSON_OF,
    names.SPEARMAN, names.SPEARMAN_OF, names.CHOICE_ACCURACY, names.CHOICE_ACCURACY_PER_BYTE,
    names.CHOICE_PROBABILITY,
)  # fmt: skip
LOWEST = (
    names.KL, names.KL_PER_TOKEN, names.TEACHER_KL,
    names.TEACHER_KL_PER_TOKEN, names.VALUE_LOSS, names.VALUE_ERROR, names.PTX_LOSS, names.LOG_LOSS,
    names.CALIBRATION_ERROR, names.CHOICE_CALIBRATION_ERROR, names.SQUARED_ERROR, names.SQUARED_ERROR_OF,
    names.ABSOLUTE_ERROR, names.ABSOLUTE_ERROR_OF, names.BITS_PER_BYTE, names.DOCUMENT_BITS_PER_BYTE,
    names.TEXT_PERPLEXITY,
)  # fmt: skip


def best_of(name: str) -> Best | None:
    """The better value of a metric, of held-out and greedy ones as of what they measure; None: neither is."""
    name = name.removeprefix("evaluation/").removeprefix("greedy/")
    if name in BETTER:  # those of supervised training
        return "lowest" if BETTER[name] == "lowest" else "highest"
    if any(metric.matches(name) for metric in LOWEST):
        return "lowest"
    return "highest" if any(metric.matches(name) for metric in HIGHEST) else None
