"""Supervised training of any objective: optimiser steps, validation, the best weights, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from proxlm.checkpoint import publish_folder
from proxlm.config import DistillConfig, DPOConfig, PretrainConfig, RewardConfig, SFTConfig
from proxlm.errors import RunError
from proxlm.runlog.metric_names import LOSS, VALIDATION_LOSS
from proxlm.runlog.run_log import RunLog
from proxlm.train.common.clock import peak_memory_gb
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.run_loop import LoopState, TrainingLoop
from proxlm.train.supervised.examples import TokenBatches
from proxlm.train.supervised.objective import Objective

SupervisedConfig = PretrainConfig | SFTConfig | RewardConfig | DPOConfig | DistillConfig


@dataclass
class SupervisedState(LoopState):
    """What a run carries from step to step, besides weights and optimiser.

    Attributes:
        rows: Training rows, which a resume must find again.
        seconds: Time spent in steps.
        without_better: Validations since the one with the lowest loss, which is `best_value`.
        lowered_budget: The most tokens in a pass, if out-of-memory has lowered it; else 0.
    """

    rows: int = 0
    seconds: float = 0.0
    without_better: int = 0
    lowered_budget: int = 0

    def problem(self) -> str:
        if self.seconds < 0:
            return f"seconds = {self.seconds:g}, where at least 0 is needed"
        return super().problem()


class SupervisedLoop(TrainingLoop[SupervisedState]):
    """Minimises an objective; the model with the best validation loss is kept in the folder `model_folder`.

    Args:
        objective: The model, its data and its loss.
        config: The settings; of the sections only train, optim and run are used.
        folder: The run's folder.
    """

    config: SupervisedConfig
    ends_with_a_validation = True
    # The metrics that the view names first.
    headline: ClassVar[tuple[str, ...]] = (LOSS, VALIDATION_LOSS)

    def __init__(self, objective: Objective, config: SupervisedConfig, folder: Path) -> None:
        super().__init__(config, folder, SupervisedState(rows=len(objective.lengths)))
        self.objective, self.settings = objective, config.train
        self.optimiser = Optimiser(objective.trainable(), config.optim)
        self.batches = TokenBatches(objective.lengths, self.settings.batch_tokens, config.run.seed)
        self.budget = TokenBudget(self.settings.micro_batch_tokens)

    def train(self, log: RunLog) -> None:
        """Run to the last step, the time limit, or the end of patience.

        Raises:
            RunError: See `TrainingLoop.train`; also if no validation loss was finite.
        """
        super().train(log)
        state = self.state
        if not state.best_step:
            raise RunError(f"{self.folder}: the validation loss was never a number; lower optim.lr")
        if self._out_of_patience():
            log.note(
                f"stopped: the last {state.without_better} validations were no better than step {state.best_step}'s"
            )

    def step(self, log: RunLog) -> dict[str, float]:
        """One optimiser step, and a validation if it is due; returns the metrics."""
        state = self.state
        log.phase("train")
        began = time.perf_counter()
        self.optimiser.hold()
        rows = self.batches.next()
        loss, tokens = within_memory(
            self.budget,
            partial(self.objective.gradient, rows),
            self.objective.lengths[rows],
            self.optimiser.clear,
        )
        norm, lr = self.optimiser.step(state.step, self.planned_steps())
        state.step += 1
        state.lowered_budget = self.budget.lowered
        finite = math.isfinite(norm)
        self.count_update(finite, partial(self._described, rows), "row {row}")
        seconds = time.perf_counter() - began
        state.seconds += seconds
        metrics = {
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "grad_norm_not_finite": float(not finite),
            "tokens_per_second": tokens / seconds,
            "time/step": seconds,
            "memory_gb": peak_memory_gb(),
        }
        if self.finished() or state.step % self.settings.validate_every == 0:
            metrics |= self._validate(log)
        return metrics

    def stopped_early(self, log: RunLog, metrics: Mapping[str, float]) -> dict[str, float]:
        return {} if "validation_loss" in metrics else self._validate(log)

    def _described(self, rows: list[int]) -> list[dict[str, object]]:
        return [{"step": self.state.step, **row} for row in self.objective.describe(rows)]

    def planned_steps(self) -> int:
        """The step limit, or the number that the time limit leaves room for at the pace so far."""
        limit = self.settings.minutes * 60
        if not limit or self.state.step < 3:
            return self.settings.steps
        pace = self.state.seconds / self.state.step
        return min(self.settings.steps, max(self.state.step + 1, int(limit / pace)))

    def _validate(self, log: RunLog) -> dict[str, float]:
        """The validation metrics; keeps the model if its loss is the lowest so far."""
        log.phase("validate")
        metrics = within_memory(self.budget, self.objective.validate, self.objective.validation_lengths)
        state, loss = self.state, metrics["validation_loss"]
        if state.take_if_best(loss, lowest=True):
            state.without_better = 0
            publish_folder(self.folder / self.model_folder, self.objective.save)
        else:
            state.without_better += 1
        log.samples(state.step, self.objective.samples(self.config.run.log_samples))
        self.callbacks.on_evaluation(state.step, "validation", metrics)
        return metrics

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.state.without_better

    def finished(self) -> bool:
        minutes = self.settings.minutes
        out_of_time = minutes > 0 and self.state.seconds >= minutes * 60
        return self.state.step >= self.settings.steps or out_of_time or self._out_of_patience()

    def weights(self) -> dict[str, Tensor]:
        return {f"policy.{name}": p for name, p in self.objective.trainable()}

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        return {"policy": self.optimiser}

    def save_model(self, folder: Path) -> None:
        self.objective.save(folder)

    def restore(self, checkpoint: Path, state: SupervisedState, extra: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        if state.rows != self.state.rows:
            raise RunError(
                f"{checkpoint}: made with {state.rows} training rows, not {self.state.rows}; resume with the same"
                " text"
            )
        self.budget.restore(state.lowered_budget)
        self.batches.skip(state.step)

    def close(self) -> None:
        self.optimiser.release()
