"""Evaluations as tables."""

from __future__ import annotations

from collections.abc import Sequence

from proxlm.evaluation.intervals import Estimate
from proxlm.evaluation.results import Evaluation


def as_table(evaluations: Sequence[Evaluation], counted: str = "held-out prompts") -> str:
    """A plain-text table: a row per metric, a column per model, intervals as mean ± half-width or with both ends.

    counted: What the evaluations count.
    """
    found = list(dict.fromkeys(key for e in evaluations for key in e.metrics))
    rows = [["metric", *(e.name for e in evaluations)]]
    rows += [[name, *(_cell(e.metrics.get(name)) for e in evaluations)] for name in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    rule = "  ".join("─" * width for width in widths)
    failed = "".join(f"; {e.failed} rewards of {e.name} failed" for e in evaluations if e.failed)
    failed += "".join(
        f"; {e.without_reward} responses of {e.name} have no reward" for e in evaluations if e.without_reward
    )
    note = f"({evaluations[0].prompts} {counted}; ± and (… to …): the 95% interval of the mean{failed})"
    return "\n".join([lines[0], rule, *lines[1:], note])


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return str(estimate)
