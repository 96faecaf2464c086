"""Writing a checkpoint, and deleting those that are no longer needed."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from proxlm.checkpoint.manifest import write_manifest
from proxlm.checkpoint.read import checkpoints, folder_name
from proxlm.errors import UserError
from proxlm.runlog.folder import write_json_atomic
from proxlm.system_errors import cannot_write, system_error
from proxlm.text import system_reason

log = logging.getLogger(__name__)
State = dict[str, Any]
# Prefixes of folders that a crash interrupted in being written, replaced or deleted.
LEFTOVERS = (".writing-", ".replaced-", ".removing-")


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: State,
    keep: int,
    write_model: Callable[[Path], None],
    model_folder: str = "policy",
) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    `write_model(folder)` saves the model in Hugging Face format, in the folder of that name.

    Raises RunError if the system refuses a write; the checkpoints before are whole.
    """
    begin_checkpoint(run, step, write_model, model_folder)
    return complete_checkpoint(run, step, tensors, state, keep)


def begin_checkpoint(run: Path, step: int, write_model: Callable[[Path], None], model_folder: str) -> None:
    """The first half of `save_checkpoint`: what needs the model itself, under a temporary name."""
    folder = made_folder(run / "checkpoints")
    clear_leftovers(folder)
    with _whole_or_gone(temporary := _temporary(folder, step), folder, _named(step)):
        temporary.mkdir()
        write_model(temporary / model_folder)


def complete_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], state: State, keep: int) -> Path:
    """The second half: what needs the tensors and state alone, so that another thread may do it with copies."""
    from safetensors.torch import save_file

    folder = run / "checkpoints"
    with _whole_or_gone(temporary := _temporary(folder, step), folder, _named(step)):
        save_file(
            {name: t.detach().contiguous().cpu() for name, t in tensors.items()},
            temporary / "state.safetensors",
        )
        write_json_atomic(temporary / "state.json", {"step": step, **state})
        give_mode_of(temporary / "state.json", temporary)
        sync_tree(temporary)
        write_manifest(temporary)
        _sync(temporary)
    final = folder / folder_name(step)
    _put_in_place(temporary, final)
    remove_old(run, keep)
    return final


def _temporary(folder: Path, step: int) -> Path:
    return folder / f".writing-{step:08d}"


def _named(step: int) -> str:
    return f"the checkpoint of step {step}"


def made_folder(folder: Path) -> Path:
    """A folder of a run's, made if it is not there."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)  # or a power cut could lose the new folder with all that is in it
    return folder


def remove_old(run: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep`; a crash may have come between a save and this."""
    for old in checkpoints(run)[:-keep]:
        remove_folder(old)


def remove_folder(folder: Path) -> None:
    """Delete a folder under another name: half deleted, it would look complete."""
    aside = folder.with_name(f".removing-{folder.name}")
    if os.path.lexists(aside):
        _delete(aside)
    os.replace(folder, aside)
    _sync(folder.parent)  # or a power cut could give the half deleted folder its name back
    _delete(aside)


def _delete(path: Path) -> None:
    """Delete a file, a link (not what it leads to), or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def publish_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder (a model for instance) under a temporary name, and rename it when it is complete.

    Raises:
        RunError: The system refuses a write; what was there before is.
    """
    temporary = target.with_name(f".writing-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    with _whole_or_gone(temporary, target):
        write(temporary)
        sync_tree(temporary)
    _put_in_place(temporary, target)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Replace `target` by two renames in a row; the old folder is deleted last."""
    aside = target.with_name(f".replaced-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if os.path.lexists(target):  # a link that leads nowhere is in the way, too
        os.replace(target, aside)
    os.replace(temporary, target)
    _sync(target.parent)
    try:
        _delete(aside)
    except FileNotFoundError:
        pass  # nothing was replaced
    except OSError as error:  # the new one is in place, so this ends no run
        log.warning("%s: cannot be removed: %s; what replaces it is there", aside, system_reason(error))


def clear_leftovers(folder: Path) -> None:
    """Remove what a crash left in a run's folder or in its checkpoints/.

    A folder that was about to be replaced is put back. Links named as checkpoints that lead nowhere are removed.
    """
    for left in leftovers(folder):
        target = folder / left.name.removeprefix(".replaced-")
        if target != left and not os.path.lexists(target):
            os.replace(left, target)
        else:
            _delete(left)


def leftovers(folder: Path) -> list[Path]:
    """What `clear_leftovers` would remove or put back."""
    found = [left for prefix in LEFTOVERS for left in sorted(folder.glob(f"{prefix}*"))]
    return found + [p for p in sorted(folder.glob("step-*")) if p.is_symlink() and not p.exists()]


def give_mode_of(file: Path, folder: Path) -> None:
    """Give every file below `folder` the mode of `file`: safetensors' can be read by their owner only."""
    mode = stat.S_IMODE(file.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync_tree(folder: Path) -> None:
    """Flush every file below `folder` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _whole_or_gone(temporary: Path, path: Path, what: str = "") -> Iterator[None]:
    """Delete `temporary` if it cannot be written to the end.

    What the system refuses becomes a RunError with path and reason, whichever library was told.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, UserError) or not isinstance(error, Exception) or system_error(error) is None:
            raise
        raise cannot_write(path, error, what) from error
