"""The loop of every training run: steps, metrics, findings, checkpoints, and how a run ends or is resumed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from proxlm.checkpoint import (
    ROWS_SHA256,
    BackgroundSave,
    accept_changes,
    begin_checkpoint,
    best_folder,
    changed_rows,
    check_fit,
    check_settings,
    complete_checkpoint,
    damage_of,
    folder_name,
    keep_model,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    remove_old,
    remove_other_models,
    save_checkpoint,
    set_aside_newer,
    settings_of,
    with_prefix,
)
from proxlm.config import (
    ControlConfig,
    DistillConfig,
    DPOConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from proxlm.config.from_run import BEST
from proxlm.data.inputs import Inputs
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.doctor import Doctor, Facts
from proxlm.errors import RunError, StoppedBySignalError
from proxlm.runlog.folder import JsonRow
from proxlm.runlog.metric_names import EVALUATION
from proxlm.runlog.rows import RowCounts
from proxlm.runlog.run_log import RunLog
from proxlm.runlog.text import number
from proxlm.text import shown
from proxlm.train.common.callbacks import Callbacks, checked_metrics
from proxlm.train.common.non_finite import save_offending_rows
from proxlm.train.common.optimiser import Optimiser

TrainingConfig = (
    PPOConfig | PretrainConfig | SFTConfig | RewardConfig | DPOConfig | DistillConfig | ControlConfig
)


@dataclass
class LoopState:
    """What every run carries from step to step, besides tensors; a trainer adds fields that `read_state` can read.

    Attributes:
        step: Steps done.
        non_finite: Steps in a row without a finite update.
        best_step: The step with the best value so far of the metric by which a model is kept; 0: none.
        best_value: That value.
    """

    step: int = 0
    non_finite: int = 0
    best_step: int = 0
    best_value: float = math.nan

    def problem(self) -> str:
        """Why a state that was read back cannot be; empty: it can be. Counts below 0 are refused in any case."""
        if self.non_finite > self.step:
            return f"non_finite = {self.non_finite}, more than the {self.step} steps done"
        if self.best_step > self.step:
            return f"best_step = {self.best_step}, after the {self.step} steps done"
        if self.best_step and math.isnan(self.best_value):
            return f"best_step = {self.best_step} without a best_value"
        return ""

    def take_if_best(self, value: float, lowest: bool) -> bool:
        """Take a value of the newest step as the best, if it is better than all before; whether it is."""
        better = value < self.best_value if lowest else value > self.best_value
        if not math.isfinite(value) or (self.best_step and not better):
            return False
        self.best_step, self.best_value = self.step, value
        return True


S = TypeVar("S", bound=LoopState)


class TrainingLoop(ABC, Generic[S]):
    """One training run. `train` is its loop; a subclass says what a step is and what a checkpoint holds.

    A checkpoint holds `weights`, the state of the optimisers, `extra_tensors` and `state`. A resumed run continues
    bit for bit, so together they must determine every later step.

    Args:
        config: The run's settings; a subclass narrows their type.
        folder: The run's folder.
        state: The state before the first step.

    Attributes:
        inputs: What the run reads, which a checkpoint records and a resume compares; None: neither.
    """

    config: TrainingConfig
    inputs: Inputs | None = None
    # The processes that take the steps together.
    ranks: Ranks = ONE_PROCESS
    # Whether `stopped_early` belongs to a run's end, so that it cannot end once a step is saved.
    ends_with_a_validation: ClassVar[bool] = False
    # The folder of a run, and of a checkpoint, that `save_model` writes.
    model_folder: ClassVar[str] = "policy"

    def __init__(self, config: TrainingConfig, folder: Path, state: S) -> None:
        self.config, self.folder, self.state = config, folder, state
        self.problem = ""  # why the run cannot continue
        self.callbacks = Callbacks()
        self._background = BackgroundSave()

    @abstractmethod
    def step(self, log: RunLog) -> dict[str, float]:
        """Do one step, add 1 to `state.step`, and return its metrics. Calls `count_update` once."""

    def next_step(self, log: RunLog) -> dict[str, float]:
        """The step as this loop takes it; one that several processes take together calls the others here."""
        return self.step(log)

    @abstractmethod
    def finished(self) -> bool:
        """Whether no step is left to do."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The tensors that change in a run, by their names in a checkpoint. A resume copies them back in place."""

    @abstractmethod
    def optimisers_by_name(self) -> dict[str, Optimiser]:
        """The optimisers, by their names in a checkpoint."""

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Write the model alone, in the form in which it is used after the run."""

    def refresh(self) -> None:
        """Before `save_model`: bring what it writes up to date, where that is a copy of what learns."""

    def extra_tensors(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold besides weights; `restore` gets them."""
        return {}

    def restore(self, checkpoint: Path, state: S, extra: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint: everything except weights, optimisers and `state`, which are set afterwards.

        Args:
            checkpoint: Its folder, for messages.
            state: Its state.
            extra: Its `extra_tensors`.

        Raises:
            RunError: The run cannot continue from there.
        """

    def facts(self) -> Facts | None:
        """What the doctor must know of the run; None: its rules are not for this kind of run."""
        return None

    def stopped_early(self, log: RunLog, metrics: Mapping[str, float]) -> dict[str, float]:  # noqa: ARG002
        """A callback, Ctrl-C or `proxlm stop` has ended the run after this step: do what a last step does besides.

        Args:
            log: The run's.
            metrics: The step's.

        Returns:
            More metrics of the step.
        """
        return {}

    def close(self) -> None:
        """Release what only training needs, at the end of `train`."""

    def train(self, log: RunLog) -> None:
        """Run from the state's step to the end, and leave a checkpoint there.

        Raises:
            RunError: The run cannot continue, because its updates are not finite for example.
            StoppedBySignalError: A signal has ended it; the newest step is saved.
        """
        facts, every = self.facts(), self.config.run.save_every
        doctor = None if facts is None else Doctor.of_run(facts, self.folder, self.state.step)
        self.callbacks.on_start(self.folder, self.state.step)
        ended = self.finished()
        try:
            while not ended:
                metrics = self.next_step(log)
                if self._background.ready:
                    self._finish_save()
                step = self.state.step
                self.callbacks.on_step(step, metrics)
                ended = self.finished()
                if not ended and (by := self._stopped_by(log)):
                    ended = True
                    metrics |= self.stopped_early(log, metrics)
                    log.note(f"stopped by {by}")
                metrics = checked_metrics(metrics)
                log.metrics(step, metrics)
                for finding in doctor.see({"step": step, **metrics}) if doctor is not None else []:
                    log.note(finding.line())
                self._keep_best(log, metrics)
                due = every > 0 and step % every == 0
                # What stands in for a run's log, in a loop of one's own for instance, has no rows to count.
                rows = log.row_counts if isinstance(log, RunLog) else None
                digests = log.rows_sha256 if isinstance(log, RunLog) else None
                log.checkpoint(partial(self.save, metrics, rows, digests), due or ended or bool(self.problem))
                if self.problem:
                    raise RunError(self.problem)
                # While the step was saved.
                if not (ended or self.ends_with_a_validation) and isinstance(log, RunLog):
                    ended = due and bool(log.stopped_by())
        except KeyboardInterrupt as stop:
            if not isinstance(stop, StoppedBySignalError):  # the second Ctrl-C, which waits for nothing
                self._background.give_up()
            raise
        finally:
            try:
                self._finish_save()
            finally:
                self.close()
        if metric := self.config.best_metric():
            log.note(self._best_line(metric))
        self.callbacks.on_end(self.state.step)

    def _keep_best(self, log: RunLog, metrics: Mapping[str, float]) -> None:
        """Keep the model of this step, if its metric is the best so far."""
        metric, state = self.config.best_metric(), self.state
        lowest = self.config.run.keep_best_is == "lowest"
        if metric not in metrics or not state.take_if_best(metrics[metric], lowest):
            return
        log.phase("checkpoint")
        self._finish_save()  # it may name a model that would be removed now
        self.refresh()
        keep_model(self.folder, state.step, self.save_model)
        if EVALUATION.matches(metric):  # others may be the best in many steps
            log.note(self._best_line(metric))

    def _best_line(self, metric: str) -> str:
        """Which step is the best, and where its model is."""
        step, run = self.state.best_step, self.config.run
        if not step:
            return f"run.keep_best = {shown(metric)}: no step has had a number of this metric"
        value = number(self.state.best_value)
        return f"best so far: step {step}, {run.keep_best_is} {metric} = {value}; kept in {BEST}/{folder_name(step)}"

    def _stopped_by(self, log: RunLog) -> str:
        """Who wants the run to end after this step; empty: nobody."""
        if self.callbacks.stop is not None:
            return f"a callback: {self.callbacks.stop}"
        # What stands in for a run's log, in a loop of one's own for instance, is not asked.
        return log.stopped_by() if isinstance(log, RunLog) else ""

    def count_update(self, finite: bool, samples: Callable[[], Sequence[JsonRow]], name: str) -> None:
        """Count the steps in a row whose update was not finite; `run.max_skipped_updates` of them end the run.

        Args:
            finite: Whether this step's update was.
            samples: Returns this step's samples, for the file that the message names; only called then.
            name: How the message names a sample, see `save_offending_rows`.
        """
        state, limit = self.state, self.config.run.max_skipped_updates
        state.non_finite = 0 if finite else state.non_finite + 1
        if 0 < limit <= state.non_finite and self.ranks.rank == 0:
            self.problem = save_offending_rows(self.folder, state.step, state.non_finite, samples(), name)
            state.non_finite = 0  # a resume is a new attempt

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        rows: RowCounts | None = None,
        rows_sha256: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a checkpoint of the state after the newest step; with run.asynchronous_save, begin to.

        Args:
            metrics: The step's.
            rows: How many rows the run's files hold, which a resume must find again.
            rows_sha256: Of these rows, by the names of `rows`.

        Returns:
            Its folder.
        """
        self._finish_save()
        tensors = self.whole_tensors()
        # How a run was started and saved is not what it is: a resumed one writes the same as one that was not.
        run = replace(self.config.run, resume=False, accept_changes=False, asynchronous_save=False)
        settings = settings_of(replace(self.config, run=run))
        state = {**asdict(self.state), "metrics": metrics or {}, "settings": settings}
        if rows is not None:
            state["row_counts"] = rows._asdict()
        if rows_sha256 is not None:
            state[ROWS_SHA256] = dict(rows_sha256)
        if self.inputs is not None:
            state["inputs"] = self.inputs.digests()
        folder, step, keep = self.folder, self.state.step, self.config.run.keep
        if not self.config.run.asynchronous_save:
            checkpoint = save_checkpoint(
                folder, step, tensors, state, keep, self.save_model, self.model_folder
            )
            return self._is_saved(step, checkpoint)
        copies = self._background.copied(tensors)
        begin_checkpoint(folder, step, self.save_model, self.model_folder)
        self._background.begin(step, partial(complete_checkpoint, folder, step, copies, state, keep))
        return folder / "checkpoints" / folder_name(step)

    def _finish_save(self) -> None:
        """Wait for the checkpoint that is written beside the steps, if one is. Raises what writing it raised."""
        if self._background.in_progress:
            self._is_saved(self._background.step, self._background.finish())

    def _is_saved(self, step: int, checkpoint: Path) -> Path:
        remove_other_models(self.folder, self.state.best_step)
        self.callbacks.on_checkpoint(step, checkpoint)
        return checkpoint

    def _find_best(self, state: S) -> None:
        """Remove the kept models of steps that are not done yet; what cannot be used any more is not the best."""
        remove_other_models(self.folder, state.best_step)
        if not self.config.best_metric() or not state.best_step:
            return
        if problem := damage_of(best_folder(self.folder, state.best_step)):
            print(f"note: the best step is chosen again, from here on: {problem}", flush=True)
            state.best_step, state.best_value = 0, math.nan

    def whole_tensors(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, by their names there."""
        extra = {f"extra.{name}": tensor for name, tensor in self.extra_tensors().items()}
        return self.learnt_tensors() | extra

    def learnt_tensors(self) -> dict[str, Tensor]:
        """The weights and the optimisers' state, by their names in a checkpoint."""
        states = {
            f"optimiser.{name}.{key}": tensor
            for name, optimiser in self.optimisers_by_name().items()
            for key, tensor in optimiser.state_tensors().items()
        }
        return self.weights() | states

    def take_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a checkpoint's weights and optimisers' state back in place."""
        for name, p in self.weights().items():
            p.copy_(tensors[name])
        for name, optimiser in self.optimisers_by_name().items():
            optimiser.load_state_tensors(with_prefix(tensors, f"optimiser.{name}."))

    @torch.no_grad()
    def resume(self) -> Path:
        """Continue from the newest whole checkpoint of the run's folder; returns it.

        Raises:
            RunError: It does not fit the settings, the model or the data, or these or the run's rows have changed and
                `run.accept_changes` is not set; weights and state are unchanged then.
        """
        checkpoint = newest_checkpoint(self.folder)
        tensors, saved = load_checkpoint(checkpoint)
        check_settings(checkpoint, saved.get("settings"), self.config)
        check_fit(checkpoint, tensors, self.learnt_tensors())
        state = read_state(type(self.state), checkpoint, saved)
        changes = changed_rows(checkpoint, saved)
        if self.inputs is not None:
            changes = [*self.inputs.changes(self.folder, saved.get("inputs")), *changes]
        accept_changes(checkpoint, changes, self.config.run.accept_changes)
        self.restore(checkpoint, state, with_prefix(tensors, "extra."))
        set_aside_newer(checkpoint)
        remove_old(self.folder, self.config.run.keep)
        self._find_best(state)
        self.take_tensors(tensors)
        self.state = state
        return checkpoint
