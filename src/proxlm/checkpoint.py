"""Checkpoints: a folder that is there whole or not at all.

    checkpoints/step-00000050/
        state.safetensors   what learns and the optimisers' moments
        state.json          counters, the KL coefficient, and what identifies the run
        policy/             the model in Hugging Face format

A checkpoint is written beside its place and renamed when it is complete and on disk, so a crash leaves only a
folder named .writing-…, which the next save removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.errors import RunError

State = dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: State,
    keep: int,
    write_policy: Callable[[Path], None],
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    `write_policy(folder)` saves the model in Hugging Face format. Raises RunError if the disk is full.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".writing-*"):
        shutil.rmtree(left)
    beside = folder / f".writing-{step:08d}"
    try:
        beside.mkdir()
        save_file(
            {name: t.detach().contiguous().cpu() for name, t in tensors.items()}, beside / "state.safetensors"
        )
        (beside / "state.json").write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
        write_policy(beside / "policy")
        sync_tree(beside)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if _is_disk_full(error):
            raise RunError(
                f"{folder}: no space left on the disk for the checkpoint of step {step}"
            ) from error
        raise
    final = folder / f"step-{step:08d}"
    _put_in_place(beside, final)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def publish_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder (a model for instance) beside its place, and put it there when it is complete."""
    beside = target.with_name(f".writing-{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write(beside)
        sync_tree(beside)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if _is_disk_full(error):
            raise RunError(f"{target}: no space left on the disk") from error
        raise
    _put_in_place(beside, target)


def _put_in_place(beside: Path, target: Path) -> None:
    """Two renames with nothing between them; what stood there before is deleted last."""
    aside = target.with_name(f".replaced-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(beside, target)
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], State]:
    """Tensors and state of a checkpoint. Raises RunError naming the file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return load_file(folder / "state.safetensors"), state
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: the checkpoint cannot be read: {error}") from error


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


def newest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint. Raises RunError where there is none."""
    found = checkpoints(run)
    if not found:
        raise RunError(
            f"{run}: no complete checkpoint to resume from; start again without --resume in a new folder"
        )
    return found[-1]


def sync_tree(folder: Path) -> None:
    """Bring every file below `folder` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports it as its own error with the system's text.
    return getattr(error, "errno", None) == 28 or "No space left" in str(error)
