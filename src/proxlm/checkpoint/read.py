"""Finding the checkpoint to go on from, and reading it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.checkpoint.manifest import damage, read_json_object
from proxlm.errors import RunError

State = dict[str, Any]
# JSON's whole numbers have no end; what a run counts or measures is within this.
LARGEST = 1e300


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def _say(text: str) -> None:
    print(text, flush=True)


def newest_checkpoint(run: Path, tell: Callable[[str], None] = _say) -> Path:
    """The newest complete checkpoint whose files are as they were written; `tell` hears of those passed over.

    Raises RunError where there is none.
    """
    found, problems = checkpoints(run), list[str]()
    for folder in reversed(found):
        try:
            problem = damage(folder)
        except RunError as error:
            problem = str(error)
        if problem is None:
            for line in problems:
                tell(f"note: passed over a damaged checkpoint: {line}")
            return folder
        problems.append(problem if problem.startswith(str(folder)) else f"{folder}: {problem}")
    advice = "start again without --resume in a new folder"
    if problems:
        raise RunError(f"{run}: every checkpoint is damaged ({'; '.join(problems)}); {advice}")
    raise RunError(f"{run}: no complete checkpoint to resume from; {advice}")


def set_aside_newer(checkpoint: Path) -> None:
    """Rename the checkpoints after the one that a run goes on from: they are damaged, and must not be counted."""
    for folder in checkpoints(checkpoint.parent.parent):
        if folder.name > checkpoint.name:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], State]:
    """Tensors and state of a checkpoint. Raises RunError naming the file that is missing, torn or altered."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    problem = damage(folder)
    if problem is not None:
        raise RunError(f"{folder}: the checkpoint is damaged: {problem}")
    state = read_json_object(folder / "state.json")
    numbers_of(folder, state, {"step": int})
    try:
        return load_file(folder / "state.safetensors"), state
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: state.safetensors cannot be read: {error}") from error


def numbers_of(checkpoint: Path, state: Mapping[str, Any], wanted: Mapping[str, type]) -> dict[str, Any]:
    """The named numbers of a state; `wanted` gives int or float. Raises RunError for one that is not there."""
    found = {}
    for name, kind in wanted.items():
        value: Any = state.get(name)
        fits = type(value) is int or (kind is float and type(value) is float)
        if not fits or not -LARGEST <= value <= LARGEST:
            raise RunError(f"{checkpoint / 'state.json'}: no number at {name!r}")
        found[name] = kind(value)
    return found


def list_of_numbers(checkpoint: Path, state: Mapping[str, Any], name: str, count: int) -> list[float]:
    """`count` numbers at `name`. Raises RunError."""
    values = state.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise RunError(f"{checkpoint / 'state.json'}: no list of {count} numbers at {name!r}")
    named = {f"{name}[{i}]": value for i, value in enumerate(values)}
    return list(numbers_of(checkpoint, named, dict.fromkeys(named, float)).values())


def check_fit(checkpoint: Path, tensors: Mapping[str, Tensor], learning: Mapping[str, Tensor]) -> None:
    """Raise RunError unless the checkpoint holds just the tensors that learn, in their shapes."""
    saved = {name: t.shape for name, t in tensors.items() if not name.startswith("optimiser.")}
    wanted = {name: t.shape for name, t in learning.items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            shapes = [tuple(s[name]) if name in s else "nothing" for s in (saved, wanted)]
            raise RunError(
                f"{checkpoint}: does not fit the settings: {name} is {shapes[0]} there and {shapes[1]} here; resume"
                " with the model, critic and adapters it was made with"
            )


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, by the rest of their names."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
