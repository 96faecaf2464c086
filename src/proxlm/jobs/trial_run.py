"""A few steps of a job on throw-away weights, in a folder that is gone afterwards: what they need and show."""

from __future__ import annotations

import io
import json
import re
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from proxlm.config import ControlConfig, PPOConfig, validate
from proxlm.config.rollout import EvaluationSettings
from proxlm.errors import StoppedBySignalError
from proxlm.jobs.trained_runs import trainer_of
from proxlm.report.run import Run
from proxlm.train.common.callbacks import Callback
from proxlm.train.common.clock import peak_memory_gb
from proxlm.types import Rollout, Scores

# So many held-out prompts are enough to see whether the base can play, and how long an evaluation takes.
MOST_HELD_OUT = 32
_STATE = "state.safetensors"
_WARMUP = re.compile(r"note: optim[.\w]*\.warmup = ")


@dataclass
class Trial:
    """What a few steps have found.

    Attributes:
        start: Seconds from the beginning of the process to the first step, evaluations left out.
        step: Seconds of the last step.
        phases: Seconds of its phases, where it has some.
        validation: Seconds of an evaluation of the job's held-out part, as far as it was evaluated here.
        held_out: How many prompts were evaluated.
        end: Seconds from the last step to the end, evaluations left out.
        peak_gb: The most memory held.
        before_gb: The memory held before the model was loaded.
        sizes: GiB of the tensors in a checkpoint, by part: policy, critic, optimiser, …
        model_gb: GiB of the weights of the model's file.
        checkpoint_gb: GiB of a checkpoint on the disk.
        sampled: The first responses of the first step with their rewards; of jobs that sample.
        notes: What the job said.
        run: What it left, read.
    """

    start: float = 0.0
    step: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    validation: float = 0.0
    held_out: int = 0
    end: float = 0.0
    peak_gb: float = 0.0
    before_gb: float = 0.0
    sizes: dict[str, float] = field(default_factory=dict)
    model_gb: float = 0.0
    checkpoint_gb: float = 0.0
    sampled: list[tuple[str, str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: Run | None = None


class _Watch(Callback):
    """Notes when things happen, what is sampled, and how large a checkpoint is."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.steps: list[float] = []
        self.metrics: Mapping[str, float] = {}
        self.sampled: list[tuple[str, str, float]] = []
        self.sizes: dict[str, float] = {}
        self.checkpoint_gb = self.model_gb = 0.0

    def on_start(self, _folder: Path, _step: int) -> None:
        self.marks["start"] = time.perf_counter()

    def on_scores(self, _step: int, rollout: Rollout, scores: Scores) -> None:
        if not self.sampled:
            totals = scores.total.tolist()
            self.sampled = [
                (p.asked or p.text, t, r)
                for p, t, r in zip(rollout.prompts, rollout.texts, totals, strict=True)
            ]

    def on_step(self, _step: int, metrics: MutableMapping[str, float]) -> None:
        self.steps.append(time.perf_counter())
        self.metrics = dict(metrics)

    def on_evaluation(self, _step: int, name: str, _metrics: Mapping[str, float]) -> None:
        self.marks[name] = time.perf_counter()

    def on_checkpoint(self, _step: int, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self.checkpoint_gb = sum(path.stat().st_size for path in files) / 2**30
        self.sizes = _sizes(folder / _STATE) if (folder / _STATE).exists() else {}
        weights = [path for path in files if path.suffix == ".safetensors" and path.name != _STATE]
        self.model_gb = sum(path.stat().st_size for path in weights) / 2**30

    def on_end(self, _step: int) -> None:
        self.marks["end"] = time.perf_counter()


def trial_run(job: str, config: Any, steps: int, keep_model: Path) -> Trial:
    """Run a job for a few steps, in a temporary folder.

    Bad records are left out, so that all that is wrong can be found; the caller reads the data for what they are.

    Args:
        job: The command.
        config: Its settings.
        steps: How many steps; the last one is measured.
        keep_model: Where the model that it leaves is moved to, with the tokenizer.

    Raises:
        UserError: What the job itself would raise.
    """
    watch, said = _Watch(), io.StringIO()
    # Of the start of Python and its libraries as much as the processor had to do; a run begins with the same.
    found = Trial(before_gb=peak_memory_gb(), start=time.process_time())
    with tempfile.TemporaryDirectory(prefix="proxlm-check-") as folder:
        short = validate(shortened(config, str(Path(folder) / "run"), steps))
        began = time.perf_counter()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                trainer = trainer_of(job)(short, [watch])
                found.run = trainer.train()
        except StoppedBySignalError as stopped:
            raise StoppedBySignalError("stopped; nothing was written", stopped.signal) from stopped
        finally:
            found.notes = _notes(said.getvalue())
        done = time.perf_counter()
        if found.run.model.is_dir():
            found.run.model.rename(keep_model)
    _take_times(found, watch, began, done)
    found.peak_gb = max(peak_memory_gb(), watch.metrics.get("memory_gb", 0.0))
    found.sizes, found.model_gb, found.checkpoint_gb = watch.sizes, watch.model_gb, watch.checkpoint_gb
    found.sampled = watch.sampled
    if found.run.before is not None:
        found.held_out = found.run.before.prompts
    return found


def _take_times(found: Trial, watch: _Watch, began: float, done: float) -> None:
    marks, steps = watch.marks, watch.steps
    starts = [marks["start"], *steps]
    durations = [end - start for start, end in pairwise(starts)]
    found.phases = {
        name.removeprefix("time/"): seconds
        for name, seconds in watch.metrics.items()
        if name.startswith("time/")
    }
    found.end = done - marks["end"]
    found.start += marks["start"] - began
    if "after" in marks:  # PPO: as long as the one before the first step
        found.validation = marks["after"] - marks["end"]
        found.start, found.end = max(0.0, found.start - found.validation), done - marks["after"]
        found.step = durations[-1]
    elif "validation" in marks:  # of the last step, which is no measure of a step therefore
        found.step = durations[-2] if len(durations) > 1 else durations[-1]
        found.validation = max(0.0, durations[-1] - found.step)
    else:
        found.step = durations[-1]


def shortened(config: Any, folder: str, steps: int) -> Any:
    """The settings of a trial."""
    run = replace(
        config.run, folder=folder, resume=False, accept_changes=False, save_every=0, keep_best="auto",
        keep_best_is="highest", tensorboard=False, wandb="", watchdog=0.0, watchdog_stop=False,
    )  # fmt: skip
    if isinstance(config, ControlConfig):
        rollout = config.environment.count * config.ppo.horizon
        environment = replace(config.environment, steps=steps * rollout)
        return replace(config, run=replace(run, keep_best="none"), environment=environment, gif="")
    if isinstance(config, PPOConfig):
        long = "skip" if config.data.on_long_prompt == "fail" else config.data.on_long_prompt
        count = min(config.data.eval_count, MOST_HELD_OUT)
        return replace(
            config,
            run=replace(run, keep_best="none"),
            ppo=replace(config.ppo, steps=steps, critic_warmup=0),
            evaluation=replace(config.evaluation, every=EvaluationSettings().every),
            data=replace(config.data, on_bad_record="skip", on_long_prompt=long, eval_count=count),
        )
    # One more, because the last step validates.
    train = replace(config.train, steps=steps + 1, minutes=0.0, validate_every=10**6)
    return replace(config, run=run, train=train, text=replace(config.text, on_bad_record="skip"))


def _notes(said: str) -> list[str]:
    """The notes and warnings among what a job has printed."""
    lines = [line.strip() for line in said.splitlines()]
    beginnings = ("note: ", "warning: ", "a text that the model continues ")
    found = (line for line in lines if line.startswith(beginnings))
    return list(dict.fromkeys(line for line in found if not _WARMUP.match(line)))  # of so few steps


def _sizes(file: Path) -> dict[str, float]:
    """GiB by the first part of the tensors' names; optimisers by their own, "optimiser.policy"."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    found: dict[str, float] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        parts = name.split(".")
        part = ".".join(parts[:2]) if parts[0] == "optimiser" else parts[0]
        begin, end = entry["data_offsets"]
        found[part] = found.get(part, 0.0) + (end - begin) / 2**30
    return found
