"""The metrics by which supervised training can keep its model and end: which value is better, and who writes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from proxlm.config.problems import Problems
from proxlm.config.schema import SupervisedSettings
from proxlm.text import shown

BETTER: dict[str, Literal["lowest", "highest"]] = {
    "loss": "lowest",
    "validation_loss": "lowest",
    "validation_accuracy": "highest",
    "validation_margin": "highest",
    "validation_error": "lowest",
    "validation_correlation": "highest",
    "validation_cross_entropy": "lowest",
    "validation_forward_kl": "lowest",
    "validation_agreement": "highest",
}
"""A metric of a validation's row → its better value."""

LANGUAGE_MODEL = ("validation_loss", "loss")
DISTILLATION = (
    "validation_loss", "validation_cross_entropy", "validation_forward_kl", "validation_agreement", "loss",
)  # fmt: skip
PREFERENCES = ("validation_loss", "validation_accuracy", "validation_margin", "loss")
REWARD_MODEL = {
    "comparisons": PREFERENCES,
    "scores": ("validation_loss", "validation_error", "validation_correlation", "loss"),
    "classes": ("validation_loss", "validation_accuracy", "loss"),
    "steps": ("validation_loss", "validation_accuracy", "loss"),
}
"""What each objective.kind of a reward model writes."""


def is_lowest_best(metric: str) -> bool:
    """Whether the lowest value of an early-stopping metric is the best."""
    return BETTER[metric] == "lowest"


def is_better(value: float, other: float, metric: str) -> bool:
    """Whether a value of a metric is better than another one; a number is better than none (NaN)."""
    if value != value or other != other:
        return value == value
    return value < other if is_lowest_best(metric) else value > other


def early_stopping_problems(train: SupervisedSettings, written: Collection[str]) -> Problems:
    """A metric to stop by that the job does not write. written: those that it does."""
    metric = train.early_stopping_metric
    if metric in written:
        return []
    return [
        ("train.early_stopping_metric", f"{shown(metric)} is not one of {', '.join(written)} of this job")
    ]
