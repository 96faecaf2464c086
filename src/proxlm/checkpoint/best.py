"""The model of the best step so far, kept in a run's best/ whether or not a checkpoint is due then.

    best/step-00000040/     the model in Hugging Face format (of control: its policy), and manifest.json

A step's folder is there whole or not at all, and is not changed again. A checkpoint says which step was the best when
it was written. So the folders stay that a checkpoint names, and a run that goes on from one finds the best up to
there, whatever came later; those of later steps are removed, and made again when the run gets there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxlm.checkpoint.manifest import damage, read_json_object, write_manifest
from proxlm.checkpoint.read import checkpoints, folder_name
from proxlm.checkpoint.write import clear_leftovers, give_mode_of, made_folder, publish_folder, remove_folder
from proxlm.config.from_run import BEST, kept_models
from proxlm.errors import RunError
from proxlm.text import shown


def best_folder(run: Path, step: int) -> Path:
    """Where the model of a step is kept."""
    return run / BEST / folder_name(step)


def keep_model(run: Path, step: int, write_model: Callable[[Path], None]) -> Path:
    """Write the model of a step, the best so far, and remove those that no checkpoint names; returns its folder.

    Raises:
        RunError: The system refuses a write; what was there before is.
    """
    folder = best_folder(run, step)
    clear_leftovers(made_folder(folder.parent))

    def write(temporary: Path) -> None:
        write_model(temporary)
        write_manifest(temporary)
        give_mode_of(temporary / "manifest.json", temporary)

    publish_folder(folder, write)
    remove_other_models(run, step)
    return folder


def remove_other_models(run: Path, best: int) -> None:
    """Remove the kept models but that of step `best`, which is the run's best so far, and those that a checkpoint
    names. 0: there is none so far.
    """
    there = kept_models(run)
    named = {best, *map(_named, checkpoints(run))} if there else {best}
    for folder in there:
        if folder not in {best_folder(run, step) for step in named}:
            remove_folder(folder)


def damage_of(folder: Path) -> str | None:
    """Why a kept model cannot be used, with its folder; None: it can."""
    if not folder.is_dir():
        return f"{folder}: missing"
    try:
        problem = damage(folder)
    except RunError as error:
        return str(error)
    return problem and f"{folder}: {shown(problem)}"


def _named(checkpoint: Path) -> int:
    """The best step that a checkpoint names; 0: none, or it cannot be read."""
    try:
        step = read_json_object(checkpoint / "state.json").get("best_step")
    except RunError:
        return 0
    return step if isinstance(step, int) and not isinstance(step, bool) and step > 0 else 0
