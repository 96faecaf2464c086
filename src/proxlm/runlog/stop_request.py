"""A request to end a run after its step, from another process: a file in the run's folder."""

from __future__ import annotations

from pathlib import Path

from proxlm.errors import RunError
from proxlm.runlog.lock import is_held
from proxlm.runlog.saved_settings import check_is_run
from proxlm.system_errors import refused

NAME = "stop"


def request_stop(folder: Path) -> None:
    """Ask the run that is in progress in a folder to end after its step.

    Raises:
        RunError: It is no run's folder, none is in progress there, or the file cannot be written.
    """
    check_is_run(folder)
    if not is_held(folder):
        raise RunError(f"{folder}: no run is in progress there, so there is nothing to stop")
    try:
        (folder / NAME).touch()
    except OSError as error:
        raise RunError(refused(error)) from error


def is_requested(folder: Path) -> bool:
    """Whether somebody has asked for it since the run began or was resumed."""
    return (folder / NAME).exists()


def forget(folder: Path) -> None:
    """Take the request back, or note that it was granted."""
    if is_requested(folder):
        (folder / NAME).unlink(missing_ok=True)
