"""Finding the checkpoint to continue from, and reading it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.checkpoint.manifest import damage, read_json_object
from proxlm.checkpoint.state import read_step
from proxlm.errors import RunError
from proxlm.files import check_regular
from proxlm.text import listed, shown

State = dict[str, Any]
# How many damaged checkpoints an error names; the others are counted.
_NAMED = 2


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def folder_name(step: int) -> str:
    """The name of the folder that holds the checkpoint of a step."""
    return f"step-{step:08d}"


def checkpoint_problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, without its folder's name; None: it can.

    Its files are not as they were written, or it is not the step that its folder's name says.
    """
    try:
        if (problem := damage(folder)) is not None:
            return problem
        step = read_step(folder, read_json_object(folder / "state.json"))
    except RunError as error:
        return str(error).removeprefix(f"{folder}{os.sep}")
    return None if folder.name == folder_name(step) else f"holds step {step}: it was renamed or exchanged"


def _print(text: str) -> None:
    print(text, flush=True)


def newest_checkpoint(run: Path, on_damaged: Callable[[str], None] = _print) -> Path:
    """The newest complete checkpoint whose files are as they were written.

    Args:
        run: The run's folder.
        on_damaged: Called with a line for each newer checkpoint that is damaged and passed over.

    Raises:
        RunError: There is none.
    """
    found, problems = checkpoints(run), dict[Path, str]()
    for folder in reversed(found):
        problem = checkpoint_problem(folder)
        if problem is None:
            for damaged, why in problems.items():
                on_damaged(f"note: passed over a damaged checkpoint: {damaged}: {why}")
            return folder
        problems[folder] = problem
    advice = "start again without run.resume in a new folder"
    if problems:
        named = [f"{damaged.name}: {shown(why)}" for damaged, why in problems.items()][:_NAMED]
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise RunError(f"{run}: every checkpoint is damaged ({'; '.join(named)}{more}); {advice}")
    raise RunError(f"{run}: no complete checkpoint to resume from; {advice}")


def set_aside_newer(checkpoint: Path) -> None:
    """Rename the checkpoints newer than the one that a run continues from: damaged, they must not be counted."""
    for folder in checkpoints(checkpoint.parent.parent):
        if folder.name > checkpoint.name:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], State]:
    """Tensors and state of a checkpoint. Raises RunError naming the file that is missing, torn or altered."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    problem = checkpoint_problem(folder)
    if problem is not None:
        raise RunError(f"{folder}: the checkpoint is damaged: {problem}")
    state = read_json_object(folder / "state.json")
    try:
        check_regular(folder / "state.safetensors")
        return load_file(folder / "state.safetensors"), state
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: state.safetensors cannot be read: {error}") from error


def check_fit(checkpoint: Path, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise RunError unless the checkpoint holds exactly these tensors, in their shapes and precisions.

    Args:
        checkpoint: Its folder.
        tensors: What it holds; those named "extra.…" are the trainer's affair.
        weights: What it should hold, the state of the optimisers included.
    """
    saved = {name: t for name, t in tensors.items() if not name.startswith("extra.")}
    wrong = []
    for name in sorted(saved.keys() | weights.keys()):
        there, here = _kind_of(saved.get(name)), _kind_of(weights.get(name))
        if there != here:
            wrong.append(f"{shown(name)} is {there} there and {here} here")
    if wrong:
        raise RunError(
            f"{checkpoint}: does not fit the settings: {listed(wrong, most=2)}; resume with the model, critic and"
            " adapters it was made with"
        )


def _kind_of(tensor: Tensor | None) -> str:
    """Shape and, unless it is float32, precision of a tensor."""
    if tensor is None:
        return "nothing"
    precision = str(tensor.dtype).removeprefix("torch.")
    return f"{tuple(tensor.shape)}" + (f" {precision}" if precision != "float32" else "")


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, by their names without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
