"""Non-finite updates: an optimiser skips a gradient that is not finite; a run that only skips is ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxlm.runlog.folder import JsonRow, write_jsonl_atomic


def finite_update(grad_norms: Sequence[Mapping[str, float]]) -> bool:
    """Whether every optimiser of a step had at least one finite gradient, so that it changed its parameters.

    Args:
        grad_norms: The norms by optimiser, for each optimiser step.
    """
    names = {name for norms in grad_norms for name in norms}
    return all(any(math.isfinite(norms[name]) for norms in grad_norms if name in norms) for name in names)


def save_offending_rows(folder: Path, step: int, in_a_row: int, rows: Sequence[JsonRow], name: str) -> str:
    """Write the samples of the last of several non-finite updates into the run's folder.

    Args:
        folder: The run's folder.
        step: The step that the samples are from.
        in_a_row: How many steps in a row had no finite update.
        rows: The samples.
        name: How the message names a sample, with a field of its row in braces: "prompt {prompt_id}".

    Returns:
        The message that ends the run.

    Raises:
        RunError: The file cannot be written.
    """
    path = folder / f"non-finite-step-{step:08d}.jsonl"
    write_jsonl_atomic(path, rows)
    named = ", ".join(name.format(**row) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
    return (
        f"{folder}: no update in the last {in_a_row} steps: gradients not finite; step {step} is saved; see {named}"
        f" in {path.name}; look at their rewards, or lower the learning rate"
    )
