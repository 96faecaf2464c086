"""Opening a run's folder: a new one with its config.toml, or one to resume, held by one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.checkpoint import clear_leftovers
from proxlm.config import to_toml
from proxlm.config.paths import absolute
from proxlm.runlog.folder import open_run, write_atomic
from proxlm.runlog.interrupt import StopSignals, stopped_outside_message
from proxlm.runlog.lock import locked
from proxlm.runlog.loggers import check_wandb
from proxlm.train.common.run_loop import TrainingConfig, TrainingLoop


@contextmanager
def run_folder(config: TrainingConfig, job: str, in_python: bool = False) -> Iterator[Path]:
    """Make a new run's folder with its config.toml, or find the one to resume, and lock it while the context lasts.

    Signals end the run at once, with a line that says what is saved; those that arrive in its loop, see `RunLog`.

    Args:
        config: The run's settings.
        job: The command's name.
        in_python: See `RunLog`.

    Raises:
        RunError: Another process holds it, or it cannot be written.
        ConfigError: The settings name no folder to resume, or a logger that is not there.
    """
    if config.run.wandb:
        check_wandb(config.run.wandb)
    folder = open_run(config.run.folder, job, config.run.resume, lambda folder: config_of_run(config, folder))
    with locked(folder), StopSignals(lambda stop: stopped_outside_message(stop, job, folder, in_python)):
        yield folder


def config_of_run(config: TrainingConfig, folder: Path) -> str:
    """The text of config.toml. It names the folder and does not ask to resume: that is for the command line.

    Its paths are absolute, so that `proxlm JOB FOLDER/config.toml --resume` works from any directory.
    """
    run = replace(config.run, resume=False, folder=str(folder))
    return to_toml(absolute(replace(config, run=run)))


def resume_if_asked(config: TrainingConfig, trainer: TrainingLoop[Any]) -> None:
    """With run.resume: continue from the newest checkpoint, and say so.

    config.toml then holds the settings now in force, and what a crash has left in the folder is removed. Raises
    RunError if the checkpoint does not fit; nothing is changed then.
    """
    if not config.run.resume:
        return
    checkpoint, folder = trainer.resume(), trainer.folder
    clear_leftovers(folder)
    write_atomic(folder / "config.toml", config_of_run(config, folder))
    print(f"resumed from {checkpoint}", flush=True)
