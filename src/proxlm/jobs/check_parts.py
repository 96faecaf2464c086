"""The parts of a recipe that `proxlm check` looks at when its settings can be read."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxlm.config import CheckConfig, ModelSettings, PPOConfig
from proxlm.config.no_effect import unused_by_algorithm
from proxlm.config.parse import job_name
from proxlm.config.paths import is_named_source, path_settings
from proxlm.errors import UserError
from proxlm.jobs.check_report import WIDTH, Report
from proxlm.jobs.checked_data import CheckedData, checked_data
from proxlm.jobs.door import cannot_play
from proxlm.jobs.estimate import memory_lines, time_lines
from proxlm.jobs.run_folder import check_run_folder
from proxlm.jobs.startup import start_job
from proxlm.jobs.trial_run import Trial, trial_run
from proxlm.models.source import ModelSource
from proxlm.runlog.outputs import KEYS, check_output
from proxlm.runlog.text import number
from proxlm.text import counted, shown, visible
from proxlm.train.common.schedules import warmup_note

# The model of the trial, whose tokenizer reads the data.
MODEL = "model"
# The commands of which a few steps are run.
TRIED = ("ppo", "value", "pretrain", "sft", "reward", "dpo", "control")


def check_parts(config: CheckConfig, settings: Any, found: Report) -> None:
    """Each part in turn, of a recipe whose settings can be read."""
    job = job_name(type(settings))
    found.line("settings", f"proxlm {job}, {config.recipe}")
    _settings(job, settings, found)
    model = getattr(settings, "model", None)
    run = getattr(settings, "run", None)
    start_job(run.threads if run is not None else 0, model if isinstance(model, ModelSettings) else None)
    with tempfile.TemporaryDirectory(prefix="proxlm-check-") as folder:
        trial = _trial(job, settings, config.steps, Path(folder), found)
        made = Path(folder) / MODEL
        data = _data(settings, made if made.exists() else None, config.samples, found)
    if trial is not None:
        _seen(settings, trial, found)
        _needed(settings, trial, data, found)


def _settings(job: str, settings: Any, found: Report) -> None:
    """What can be said before anything is read."""
    if job in TRIED:
        try:
            check_run_folder(settings.run)
        except UserError as error:
            found.error("settings", str(error))
    for key, command in (("output", job), ("responses", f"{job} --responses")):
        of_folder = job == "tokenizer" or (job == "classify" and not settings.classifier)
        if command in KEYS and not of_folder and (path := getattr(settings, key, "")):
            try:
                check_output(Path(path), command)
            except UserError as error:
                found.error("settings", f"{key}: {error}")
    if job not in TRIED:  # a trial says it in the command's own words
        for path in path_settings(settings):
            if path.kind == "input" and not os.path.exists(path.value) and not is_named_source(path.value):
                found.error("settings", f"{path.key}: {path.value}: no such file")
    if isinstance(settings, PPOConfig):
        for note in unused_by_algorithm(settings.ppo):
            found.warning("settings", note)


def _trial(job: str, settings: Any, steps: int, folder: Path, found: Report) -> Trial | None:
    """A few steps, the model loaded and the reward called with them; None where the command has none."""
    if not steps or job not in TRIED:
        model = getattr(settings, "model", None)
        if isinstance(model, ModelSettings):
            for name in _models(settings):
                _load(replace(model, policy=name), found)
        return None
    print(f"{'':<{WIDTH}}running {counted(steps, 'step')} on throw-away weights …", flush=True)
    try:
        trial = trial_run(job, settings, steps, keep_model=folder / MODEL)
    except UserError as error:
        found.error("run", str(error))
        return None
    for note in (*trial.notes, *_of_warmup(settings)):
        found.warning("run", note.removeprefix("note: "))
    return trial


def _of_warmup(settings: Any) -> list[str]:
    """What the trial says of its own few steps, of the run's."""
    if isinstance(settings, PPOConfig):
        updates = settings.ppo.steps * settings.ppo.epochs * settings.ppo.minibatches
        optims = {"optim.policy": settings.optim.policy, "optim.critic": settings.optim.critic}
    elif hasattr(settings, "train"):
        updates, optims = settings.train.steps, {"optim": settings.optim}
    else:
        return []
    return [note for key, optim in optims.items() if (note := warmup_note(key, optim, updates))]


def _models(settings: Any) -> list[str]:
    """The models that a command without steps begins with."""
    named = [settings.model.policy, *getattr(settings, "models", [])]
    return [name for name in named if name]


def _load(settings: ModelSettings, found: Report) -> None:
    """Load the model of a command without steps, as it does at its beginning."""
    try:
        model = ModelSource(settings).load()
    except UserError as error:
        found.error("model", str(error))
        return
    count = sum(p.numel() for p in model.network.parameters())
    found.line("model", f"{settings.policy}: {count / 1e6:.2f}M parameters, loaded")


def _data(settings: Any, tokenizer: Path | None, samples: int, found: Report) -> CheckedData | None:
    try:
        data = checked_data(settings, tokenizer, samples)
    except UserError as error:
        found.error("data", str(error))
        return None
    if data is None:
        return None
    found.line("data", data.counts)
    for line in data.notes:
        found.line("data", line)
    for line in data.errors:
        found.error("data", line)
    for text in data.shown:
        found.line("tokens", text)
    for problem in data.seams:
        found.warning("seam", problem)
    if isinstance(settings, PPOConfig) and data.shown and not data.seams:
        found.line("seam", "prompts end where whole texts have the end of a token")
    return data


def _seen(settings: Any, trial: Trial, found: Report) -> None:
    """What the steps have shown of model and reward."""
    for prompt, response, reward in trial.sampled[:2]:
        end = shown(prompt[-30:], 30)
        found.line("reward", f"{number(reward)} for …{end}⟶{shown(visible(response), 60)}")
    if trial.run is not None and trial.run.before is not None and isinstance(settings, PPOConfig):
        for problem in cannot_play(trial.run.before, settings):
            found.warning("model", problem)


def _needed(settings: Any, trial: Trial, data: CheckedData | None, found: Report) -> None:
    """What the run needs of memory, disk and time."""
    for line in memory_lines(settings, trial):
        found.line("memory", line)
    for line in time_lines(settings, trial, data.held_out if data is not None else 0):
        found.line("time", line)
