"""Opening a run's folder: a new one with its config.toml, or one to resume, held by one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.checkpoint import clear_leftovers
from proxlm.config import RunSettings, to_toml
from proxlm.config.from_run import BEST
from proxlm.config.paths import absolute
from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.inputs import inputs_of, read_inputs, write_inputs
from proxlm.data.records import Source
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.errors import ConfigError
from proxlm.models.source import ModelSource
from proxlm.runlog.folder import (
    folder_to_resume,
    has_checkpoint,
    open_run,
    refuse_if_taken,
    write_atomic,
)
from proxlm.runlog.interrupt import StopSignals, stopped_outside_message
from proxlm.runlog.lock import locked, refuse_if_held
from proxlm.runlog.loggers import check_loggers
from proxlm.runlog.metric_names import EVALUATION, METRICS, is_metric_of
from proxlm.runlog.rows import METRICS as METRICS_FILE
from proxlm.runlog.rows import SAMPLES as SAMPLES_FILE
from proxlm.runlog.stop_request import forget
from proxlm.text import did_you_mean, shown
from proxlm.train.common.callbacks import Callbacks
from proxlm.train.common.run_loop import TrainingConfig, TrainingLoop


def check_run_folder(run: RunSettings) -> None:
    """What can be said of a run's folder before anything is loaded. Nothing is written.

    Raises:
        RunError: Another process holds it, it holds a run that is not to be resumed, or none that could be.
        ConfigError: A logger that is asked for is not there.
    """
    check_loggers(run)
    if run.resume:
        refuse_if_held(folder_to_resume(run.folder))
    elif run.folder:
        refuse_if_taken(Path(run.folder))


@contextmanager
def run_folder(
    config: TrainingConfig, job: str, in_python: bool = False, ranks: Ranks = ONE_PROCESS
) -> Iterator[Path]:
    """Make a new run's folder with its config.toml, or find the one to resume, and lock it while the context lasts.

    Signals end the run at once, with a line that says what is saved; those that arrive in its loop, see `RunLog`.

    Args:
        config: The run's settings.
        job: The command's name.
        in_python: See `RunLog`.
        ranks: Rank 0 alone has the folder; the others get an empty path.

    Raises:
        RunError: Another process holds it, or it cannot be written.
    """
    if ranks.rank > 0:
        yield Path()
        return
    folder = open_run(config.run.folder, job, config.run.resume, lambda folder: config_of_run(config, folder))
    with locked(folder), StopSignals(lambda stop: stopped_outside_message(stop, job, folder, in_python)):
        forget(folder)  # a request to an earlier process; one to this process may come before its loop begins
        try:
            yield folder
        finally:
            with suppress(OSError):
                forget(folder)  # it came after the last step


def config_of_run(config: TrainingConfig, folder: Path) -> str:
    """The text of config.toml. It names the folder, and does not ask to resume or to accept changes: that is for the
    command line.

    Its paths are absolute, so that `proxlm JOB FOLDER/config.toml --resume` works from any directory.
    """
    run = replace(config.run, resume=False, accept_changes=False, folder=str(folder))
    return to_toml(absolute(replace(config, run=run)))


def begin_run(
    config: TrainingConfig,
    loop: TrainingLoop[Any],
    sources: Mapping[str, Source | ModelSource | None] | None = None,
) -> None:
    """Record what a new run reads or, with run.resume, continue from the newest checkpoint and say so.

    A run that ended while its teacher answered has no checkpoint: it begins with its first step. A resumed run's
    config.toml then holds the settings now in force, and what a crash has left in the folder is removed.

    Args:
        config: Its settings.
        loop: Its loop.
        sources: What a Python caller may have passed instead of a setting's files, by the setting's key.

    Raises:
        RunError: The checkpoint does not fit, or the run's inputs or rows have changed; no step is lost then.
    """
    folder, resumed = loop.folder, config.run.resume
    in_memory = {
        key: source
        for key, source in (sources or {}).items()
        if isinstance(source, InMemoryRecords | ModelSource)
    }
    loop.inputs = inputs_of(config, read_inputs(folder) if resumed else None, in_memory)
    if resumed:
        for place in (folder, folder / "checkpoints", folder / BEST):
            clear_leftovers(place)
        if has_checkpoint(folder):
            checkpoint = loop.resume()
            done = ", after which no step is left" if loop.finished() else ""
            print(f"resumed from {checkpoint}{done}", flush=True)
        else:  # rows of steps that were not saved
            for name in (METRICS_FILE, SAMPLES_FILE):
                (folder / name).unlink(missing_ok=True)
        write_atomic(folder / "config.toml", config_of_run(config, folder))
    write_inputs(folder, loop.inputs)


def check_best_metric(metric: str, job: str, callbacks: Callbacks) -> None:
    """Raise ConfigError if run.keep_best names a metric that no step can have.

    Args:
        metric: The metric.
        job: The command's name.
        callbacks: Of the run; one may add metrics of any name.
    """
    if not metric or len(callbacks) or is_metric_of(metric, job):
        return
    there = [*METRICS, *(EVALUATION(name) for name in ("reward", "greedy/reward", "kl"))]
    hint = did_you_mean(metric, there, otherwise="see docs/metrics.md")
    raise ConfigError(f"run.keep_best: proxlm {job} has no metric {shown(metric)}; {hint}")
