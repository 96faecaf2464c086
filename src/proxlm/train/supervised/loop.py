"""Supervised training of any objective: optimiser steps, validation, the best weights, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxlm.checkpoint import publish_folder
from proxlm.config import DistillConfig, DPOConfig, PretrainConfig, RewardConfig, SFTConfig
from proxlm.config.early_stopping import is_better, is_lowest_best
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.errors import RunError
from proxlm.runlog.metric_names import AVERAGE, EPOCHS, LOSS, VALIDATION_LOSS
from proxlm.runlog.run_log import NoLog, RunLog
from proxlm.runlog.text import number
from proxlm.train.common.clock import peak_memory_gb
from proxlm.train.common.memory import TokenBudget, failing_together, within_memory
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.common.run_loop import LoopState
from proxlm.train.common.shared_loop import SharedLoop
from proxlm.train.supervised.averaging import WeightAverage
from proxlm.train.supervised.batches import Mixture, batches_of
from proxlm.train.supervised.objective import Objective, check_same_rows, rows_sha256
from proxlm.train.supervised.sharding import named_weights, shard_objective

SupervisedConfig = PretrainConfig | SFTConfig | RewardConfig | DPOConfig | DistillConfig


@dataclass
class SupervisedState(LoopState):
    """What a run carries from step to step, besides weights and optimiser.

    Attributes:
        rows: Training rows, which a resume must find again.
        seconds: Time spent in steps.
        without_better: Validations since the one with the best metric, which is `best_value`.
        best_average: 1: the model that is kept has averaged weights; 0: plain ones.
        best_other: The metric of the other one of the two.
        lowered_budget: The most tokens in a pass, if out-of-memory has lowered it; else 0.
    """

    rows: int = 0
    seconds: float = 0.0
    without_better: int = 0
    best_average: int = 0
    best_other: float = math.nan
    lowered_budget: int = 0

    def problem(self) -> str:
        if self.seconds < 0:
            return f"seconds = {self.seconds:g}, where at least 0 is needed"
        return super().problem()


class SupervisedLoop(SharedLoop[SupervisedState]):
    """Minimises an objective; the model with the best validation metric is kept in the folder `model_folder`.

    Args:
        objective: The model, its data and its loss.
        config: The settings; of the sections only train, optim and run are used.
        folder: The run's folder.
        mixture: The sources of the training rows; None: there is one.
        ranks: The processes that train together. All draw the same rows and share the passes over them.
    """

    config: SupervisedConfig
    ends_with_a_validation = True
    # The metrics that the view names first.
    headline: ClassVar[tuple[str, ...]] = (LOSS, VALIDATION_LOSS)

    def __init__(
        self,
        objective: Objective,
        config: SupervisedConfig,
        folder: Path,
        mixture: Mixture | None = None,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        sharded = config.distributed.shards(ranks.size)
        super().__init__(config, folder, SupervisedState(rows=len(objective.lengths)), ranks, sharded)
        self.objective, self.settings = objective, config.train
        # What is saved and shows samples: the objective, or on rank 0 one on a whole copy of a sharded model.
        self.whole_objective: Any = shard_objective(objective, ranks) if sharded else objective
        self.optimiser = Optimiser(objective.trainable(), config.optim)
        self.batches = batches_of(objective.lengths, config.train, config.run.seed, mixture)
        self.budget = TokenBudget(self.settings.micro_batch_tokens)
        self.average = WeightAverage(objective.trainable(), config.train)

    def train(self, log: RunLog) -> None:
        """Run to the last step, the time limit, or the end of patience.

        Raises:
            RunError: See `TrainingLoop.train`; also if no validation metric was finite.
        """
        super().train(log)
        state, metric = self.state, self.settings.early_stopping_metric
        if not state.best_step:
            raise RunError(f"{self.folder}: {metric} was never a number at a validation; lower optim.lr")
        if self.average.kind != "none":
            kept, other = ("averaged", "plain") if state.best_average else ("plain", "averaged")
            log.note(
                f"{self.model_folder}/: the {kept} weights of step {state.best_step}, {metric}"
                f" {number(state.best_value)}; {other} {number(state.best_other)}"
            )
        if times := self.batches.read():
            log.note("read: " + ", ".join(f"{name} {count:.2f} times" for name, count in times.items()))
        if self._out_of_patience():
            log.note(
                f"stopped: the last {state.without_better} validations were no better than step {state.best_step}'s"
            )

    def handlers(self) -> dict[str, Callable[..., object]]:
        return {
            **super().handlers(),
            "validate": lambda metrics: self._validate(NoLog(self.ranks.phase), metrics),
        }

    def step(self, log: RunLog | NoLog) -> dict[str, float]:
        """One optimiser step, and a validation if it is due; returns the metrics. All ranks take it together."""
        state = self.state
        log.phase("train")
        began = time.perf_counter()
        self.optimiser.hold()
        rows = self.batches.next()
        self.objective.begin_step(state.step)
        loss, tokens = self.gradient(rows)
        norm, lr = self.optimiser.step(state.step, self.planned_steps())
        self.average.after_step()
        state.step += 1
        state.lowered_budget = self.budget.lowered
        finite = math.isfinite(norm)
        self.count_update(finite, partial(self._described, rows), "row {row}")
        seconds = self.ranks.broadcast(
            lambda: time.perf_counter() - began
        )  # a limit of time ends all ranks' run
        state.seconds += seconds
        metrics: dict[str, float] = {
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "grad_norm_not_finite": float(not finite),
            "tokens_per_second": tokens / seconds,
            "time/step": seconds,
            "memory_gb": peak_memory_gb(),
        }
        metrics |= {EPOCHS(name): times for name, times in self.batches.read().items()}
        if self.finished() or state.step % self.settings.validate_every == 0:
            metrics |= self._validate(log, metrics)
        return metrics

    def _synchronise(self) -> None:
        if self.ranks.size > 1:
            found = self.ranks.gather(lambda: rows_sha256(self.objective))
            self.ranks.broadcast(lambda: check_same_rows(found))
        super()._synchronise()

    def gradient(self, rows: list[int]) -> tuple[float, int]:
        """Leave the gradient of the rows' loss, of all ranks, in `.grad`; returns the loss and the tokens read."""
        ranks = self.ranks

        def attempt(micro_batch_tokens: int) -> tuple[float, int]:
            own = partial(self.objective.gradient, rows, micro_batch_tokens, ranks)
            return failing_together(ranks, own)

        lengths = self.objective.lengths[rows]
        loss, tokens = within_memory(self.budget, attempt, lengths, self.optimiser.clear)
        ranks.sum_in_place(p.grad for _, p in self.optimiser.named if p.grad is not None)
        return float(ranks.sum(torch.tensor(loss, dtype=torch.float64))), tokens

    def stopped_early(self, log: RunLog, metrics: Mapping[str, float]) -> dict[str, float]:
        if VALIDATION_LOSS in metrics:
            return {}
        self.ranks.call("validate", dict(metrics))
        return self._validate(log, metrics)

    def _described(self, rows: list[int]) -> list[dict[str, object]]:
        return [{"step": self.state.step, **row} for row in self.objective.describe(rows)]

    def planned_steps(self) -> int:
        """The step limit, or the number that the time limit leaves room for at the pace so far."""
        limit = self.settings.minutes * 60
        if not limit or self.state.step < 3:
            return self.settings.steps
        pace = self.state.seconds / self.state.step
        return min(self.settings.steps, max(self.state.step + 1, int(limit / pace)))

    def _validate(self, log: RunLog | NoLog, of_step: Mapping[str, float]) -> dict[str, float]:
        """The validation metrics; keeps the model, plain or averaged, if its metric is the best so far."""
        log.phase("validate")
        metrics = self._measured()
        state, metric = self.state, self.settings.early_stopping_metric
        value, other, averaged = {**of_step, **metrics}.get(metric, math.nan), math.nan, False
        self.average.at_validation()
        if self.average.differs:
            with self.average.in_place():
                of_average = self._measured()
            metrics |= {AVERAGE(name): found for name, found in of_average.items()}
            other = of_average.get(metric, math.nan)
            averaged = is_better(other, value, metric)
        if averaged:
            value, other = other, value
        self._refresh()
        if state.take_if_best(value, is_lowest_best(metric)):
            state.without_better, state.best_average, state.best_other = 0, int(averaged), other
            self._publish(averaged)
        else:
            state.without_better += 1
        if self.ranks.rank == 0:
            log.samples(state.step, self.whole_objective.samples(self.config.run.log_samples))
        self.callbacks.on_evaluation(state.step, "validation", metrics)
        return metrics

    def _publish(self, averaged: bool) -> None:
        """Save the model with plain weights, which the whole copy has, or with averaged ones."""
        with self.average.in_place() if averaged else nullcontext():
            if averaged:
                self._refresh()
            if self.ranks.rank == 0:
                publish_folder(self.folder / self.model_folder, self.whole_objective.save)
        if averaged:
            self._refresh()

    def _measured(self) -> dict[str, float]:
        measure = partial(self.objective.validate, ranks=self.ranks)
        return within_memory(self.budget, measure, self.objective.validation_lengths)

    def _out_of_patience(self) -> bool:
        return 0 < self.settings.patience <= self.state.without_better

    def finished(self) -> bool:
        minutes = self.settings.minutes
        out_of_time = minutes > 0 and self.state.seconds >= minutes * 60
        return self.state.step >= self.settings.steps or out_of_time or self._out_of_patience()

    def weights(self) -> dict[str, Tensor]:
        return {f"policy.{name}": p for name, p in self.objective.trainable()}

    def copies(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.sharded:
            copies = named_weights(self.whole_objective) if self.ranks.rank == 0 else {}
            yield from ((p, copies.get(name)) for name, p in self.objective.trainable())

    def optimisers_by_name(self) -> dict[str, Optimiser]:
        return {"policy": self.optimiser}

    def save_model(self, folder: Path) -> None:
        self.whole_objective.save(folder)

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.average.tensors()

    def restore(self, checkpoint: Path, state: SupervisedState, extra: Mapping[str, Tensor]) -> None:
        if state.rows != self.state.rows:
            raise RunError(
                f"{checkpoint}: made with {state.rows} training rows, not {self.state.rows}; resume with the same"
                " text"
            )
        self.average.load(extra)
        self.budget.restore(state.lowered_budget)
        self.batches.skip(state.step)

    def close(self) -> None:
        self.optimiser.release()
