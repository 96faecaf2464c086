"""What a distillation has made, as a page of Markdown: sizes, measures and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from proxlm.evaluation.tables import Table, as_markdown
from proxlm.models.language_model import LanguageModel
from proxlm.runlog.folder import JsonRow, read_jsonl, write_atomic
from proxlm.runlog.metric_names import (
    STEP,
    VALIDATION_AGREEMENT,
    VALIDATION_CROSS_ENTROPY,
    VALIDATION_FORWARD_KL,
    VALIDATION_LOSS,
    VALIDATION_REVERSE_KL,
    declared,
)
from proxlm.runlog.rows import METRICS, SAMPLES
from proxlm.text import shown

NAME = "card.md"
_SHOWN = (
    VALIDATION_LOSS,
    VALIDATION_FORWARD_KL,
    VALIDATION_REVERSE_KL,
    VALIDATION_AGREEMENT,
    VALIDATION_CROSS_ENTROPY,
)
_LONGEST = 400


def write_card(
    folder: Path, teacher: str, teacher_model: LanguageModel | None, student: LanguageModel
) -> None:
    """Write card.md to a run's folder: of the step whose student is kept, and of the first validation.

    Args:
        folder: The run's.
        teacher: Its name.
        teacher_model: It; None: it is behind a URL.
        student: The student.

    Raises:
        RunError: The folder's rows cannot be read, or nothing can be written.
    """
    rows = [row for row in read_jsonl(folder / METRICS) if row.get(VALIDATION_LOSS) is not None]
    best = min(rows, key=lambda row: float(row[VALIDATION_LOSS]))
    answers = [row for row in read_jsonl(folder / SAMPLES) if row.get(STEP) == best[STEP]]
    sizes = [_parameters(model) for model in (teacher_model, student)]
    tables = [
        Table(("", "teacher", "student"), [("model", teacher, "policy/"), ("parameters", *sizes)], "Models"),
        _measures(rows[0], best),
        Table(
            ("prompt", "teacher", "student"),
            [
                tuple(shown(str(row.get(k, "")), _LONGEST) for k in ("prompt", "expected", "response"))
                for row in answers
            ],
            "Greedy answers to held-out prompts, the first ones",
        ),
    ]
    write_atomic(folder / NAME, "# A student\n\n" + as_markdown(tables))


def _parameters(model: LanguageModel | None) -> str:
    return "?" if model is None else f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.2f}M"


def _measures(first: JsonRow, best: JsonRow) -> Table:
    """The first validation beside that of the step that is kept."""
    found: list[Sequence[str]] = []
    for name in _SHOWN:
        if best.get(name) is not None:
            metric = declared(name)
            unit = metric.unit if metric is not None else ""
            found.append((name, f"{first[name]:.4f}", f"{best[name]:.4f}", unit))
    head = ("", f"step {first[STEP]}", f"step {best[STEP]}, which is kept", "unit")
    return Table(head, found, "Held-out texts")
