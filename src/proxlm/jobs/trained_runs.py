"""Runs that a command trains for its own purpose: those of folds, searches and sweeps."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from signal import Signals
from typing import Any

from proxlm.config import validate
from proxlm.errors import RunError, StoppedBySignalError
from proxlm.jobs.supervised import best_validation
from proxlm.report.run import Run
from proxlm.runlog.folder import folder_to_resume
from proxlm.runlog.interrupt import SIGNAL_NAMES
from proxlm.runlog.lock import refuse_if_held
from proxlm.runlog.metric_names import VALIDATION_LOSS
from proxlm.train.common.callbacks import Callback

_TRAINERS = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "pretrain": "Pretrain", "ppo": "PPO", "value": "Value",
             "distill": "Distill",
             "control": "Control"}  # fmt: skip
# Files in which a reward model is compared with others: its own evaluation.
_MODEL, _AFTER = "model", "after"


def in_no_folder(base: Any, whose: str) -> Any:
    """The settings of a recipe without its run's folder.

    Args:
        base: The settings.
        whose: Whose run folders are used instead of the recipe's, for a note.
    """
    if base.run.folder or base.run.resume:
        print(
            f"note: run.folder and run.resume are those of the {whose}; the recipe's are not used", flush=True
        )
    return replace(base, run=replace(base.run, folder="", resume=False))


# Makes a trainer of a job from its settings.
MakeTrainer = Callable[[Any, Sequence[Callback]], Any]


def trainer_of(command: str, **given: Any) -> MakeTrainer:
    """What makes the trainer of a command, with everything that is not given from its settings."""
    kind = getattr(import_module(f"proxlm.jobs.{command}"), f"{_TRAINERS[command]}Trainer")
    return lambda settings, callbacks: kind(config=settings, callbacks=callbacks, **given)


def trained(make: MakeTrainer, settings: Any, callbacks: Sequence[Callback] = ()) -> Run:
    """Train a job in its run.folder, or go on from that run's newest checkpoint."""
    run = replace(settings.run, resume=_can_resume(Path(settings.run.folder)))
    found: Run = make(validate(replace(settings, run=run)), callbacks).train()
    return found


@contextmanager
def saying_how_to_go_on(name: str, config: Any, folder: Path) -> Iterator[None]:
    """A signal that ends one of many runs says how all of them go on.

    Args:
        name: The command.
        config: Its settings.
        folder: Of all its runs.
    """
    try:
        yield
    except StoppedBySignalError as stopped:
        words = ["proxlm", name, config.command, config.recipe, "--folder", str(folder)]
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name in ("command", "recipe", "folder") or value == _default(field):
                continue
            for one in value if isinstance(value, list) else [value]:
                text = str(one).lower() if isinstance(one, bool) else str(one)
                words += [f"--{field.name.replace('_', '-')}", text]
        by = SIGNAL_NAMES[Signals(stopped.signal)]
        raise StoppedBySignalError(
            f"stopped by {by}; go on with: {shlex.join(words)}", stopped.signal
        ) from stopped


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def held_out_numbers(run: Run) -> dict[str, float]:
    """What a finished run says of its held-out records.

    Of ppo and value their evaluation after training, of reward its judgement; else the validation of the step whose
    model was kept, the best one, which is therefore a little too good.
    """
    evaluation = run.evaluations.get(_AFTER if run.job in ("ppo", "value") else _MODEL)
    if evaluation is not None:
        return evaluation.means()
    if VALIDATION_LOSS not in run.metrics:
        return {}
    _, _, best = best_validation(run)
    row = {
        name: values[best]
        for name, values in run.metrics.items()
        if name.startswith(("validation", "average/"))
    }
    return {name: value for name, value in row.items() if value is not None}


def numbers_of(run: Run) -> dict[str, float]:
    """The numbers of a finished run: of its last step, and above all of its held-out records."""
    last = {name: column[-1] for name, column in run.metrics.items() if column and column[-1] is not None}
    return {name: float(value) for name, value in last.items() if value is not None} | _of_reward(run)


def _of_reward(run: Run) -> dict[str, float]:
    """Held-out numbers; of a reward model those of its best validation as well."""
    without = replace(run, evaluations={}) if run.job == "reward" else run
    return held_out_numbers(without) | held_out_numbers(run)


def _can_resume(folder: Path) -> bool:
    """Whether a run goes on from a checkpoint; one that was ended before its first begins again."""
    if not folder.exists():
        return False
    refuse_if_held(folder)
    try:
        folder_to_resume(str(folder))
    except RunError:
        shutil.rmtree(folder)
        return False
    return True
