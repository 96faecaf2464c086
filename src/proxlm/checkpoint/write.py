"""Writing a checkpoint, and deleting those that are no longer wanted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.checkpoint.manifest import read_json_object, write_manifest
from proxlm.checkpoint.read import checkpoints
from proxlm.config import RunSettings
from proxlm.errors import RunError
from proxlm.runlog.folder import write_json_atomic

State = dict[str, Any]
# What a crash leaves of a folder that was being written, replaced or deleted.
LEFTOVERS = (".writing-", ".replaced-", ".removing-")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest ones, and the one with the best value of a metric ("": of none)."""

    newest: int
    best: str = ""
    lowest: bool = False

    @staticmethod
    def of(run: RunSettings) -> Keep:
        """What a run's settings say."""
        return Keep(run.keep, run.keep_best, run.keep_best_is == "lowest")


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: State,
    keep: Keep,
    write_policy: Callable[[Path], None],
) -> Path:
    """Write the checkpoint of `step`, then delete those that `keep` does not name.

    `write_policy(folder)` saves the model in Hugging Face format; state["metrics"], if there, are the step's, of
    which keep.best names one. Raises RunError if the disk is full.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (f for prefix in LEFTOVERS for f in folder.glob(f"{prefix}*")):
        shutil.rmtree(left)
    beside = folder / f".writing-{step:08d}"
    try:
        beside.mkdir()
        save_file(
            {name: t.detach().contiguous().cpu() for name, t in tensors.items()}, beside / "state.safetensors"
        )
        write_json_atomic(beside / "state.json", {"step": step, **state})
        write_policy(beside / "policy")
        sync_tree(beside)
        write_manifest(beside)
        _sync(beside)
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if _is_disk_full(error):
            raise RunError(
                f"{folder}: no space left on the disk for the checkpoint of step {step}"
            ) from error
        raise
    final = folder / f"step-{step:08d}"
    _put_in_place(beside, final)
    for old in _unwanted(checkpoints(run), keep):
        _remove(old)
    return final


def _remove(folder: Path) -> None:
    """Delete a folder that, half deleted, would look like a whole one."""
    aside = folder.with_name(f".removing-{folder.name}")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def _unwanted(found: list[Path], keep: Keep) -> list[Path]:
    """Which of the checkpoints, oldest first, are to go."""
    old = found[: -keep.newest]
    if not keep.best or not old:
        return old
    values = {folder: value for folder in found if (value := _metric(folder, keep.best)) is not None}
    # Of equal ones the newest is kept.
    best = max(values, key=lambda f: (-values[f] if keep.lowest else values[f], f.name), default=None)
    return [folder for folder in old if folder != best]


def _metric(folder: Path, name: str) -> float | None:
    """The value of a metric at a checkpoint's step; None where it had none."""
    try:
        value = read_json_object(folder / "state.json")["metrics"][name]
    except (RunError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, float) else None


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


def clear_leftovers(folder: Path) -> None:
    """Tidy up what a crash left in a run's folder; what stood in the middle of being replaced is put back."""
    for prefix in LEFTOVERS:
        for left in folder.glob(f"{prefix}*"):
            target = folder / left.name.removeprefix(prefix)
            if prefix == ".replaced-" and not target.exists():
                os.replace(left, target)
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


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
