"""The loop that pretraining and supervised fine-tuning share: next-token loss, validation, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxlm.checkpoint import (
    Keep,
    check_fit,
    check_settings,
    load_checkpoint,
    newest_checkpoint,
    numbers_of,
    publish_folder,
    save_checkpoint,
    set_aside_newer,
    settings_of,
    with_prefix,
)
from proxlm.config import PretrainConfig, SFTConfig
from proxlm.errors import RunError
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.runlog.writer import RunLog
from proxlm.train.common.clock import peak_memory_gb
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.non_finite import end_of_run
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.supervised.examples import Examples, TokenBatches, supervised_gradient


@dataclass
class SupervisedState:
    """All that a run carries from step to step, besides weights and optimiser.

    skipped: steps in a row without an update; pass_tokens: the most tokens in a pass, if memory asked for less than
    the setting, else 0.
    """

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    without_better: int = 0
    skipped: int = 0
    pass_tokens: int = 0


class SupervisedTrainer:
    """Trains `model` in place; the weights with the best validation loss are kept in folder/policy."""

    def __init__(
        self,
        model: LanguageModel,
        train: Examples,
        validation: Examples,
        job: PretrainConfig | SFTConfig,
        folder: Path,
    ) -> None:
        self.model, self.train_set, self.validation_set = model, train, validation
        self.job, self.config, self.run, self.folder = job, job.train, job.run, folder
        self.optimiser = Optimiser(model.trainable(), job.optim)
        self.batches = TokenBatches(train, self.config.batch_tokens, self.run.seed)
        self.state = SupervisedState()
        self.budget = TokenBudget(self.config.micro_batch_tokens)
        self.problem = ""  # why the run cannot go on

    def train(self, log: RunLog) -> SupervisedState:
        """Run to the last step, the time limit, or the end of patience; returns the final state."""
        state = self.state
        self.optimiser.hold()
        while not self._finished():
            metrics = self.step(log)
            ended = self._finished()
            if ended or state.step % self.config.validate_every == 0:
                metrics["validation_loss"] = self._validate(log)
            log.metrics(state.step, metrics)
            due = self.run.save_every > 0 and state.step % self.run.save_every == 0
            log.checkpoint(partial(self.save, metrics), due or ended or bool(self.problem))
            if self.problem:
                raise RunError(self.problem)
        self.optimiser.release()
        if math.isinf(state.best_loss):
            raise RunError(f"{self.folder}: the validation loss was never a number; lower optim.lr")
        if self._out_of_patience():
            log.note(
                f"stopped: the last {state.without_better} validations were no better than step {state.best_step}'s"
            )
        return state

    def step(self, log: RunLog) -> dict[str, float]:
        """One optimiser step; returns its metrics."""
        log.phase("train")
        began = time.perf_counter()
        rows = self.batches.next()
        loss, tokens = within_memory(
            self.budget,
            partial(supervised_gradient, self.model, self.train_set, rows),
            self.train_set.lengths[rows],
            self.optimiser.clear,
        )
        norm, lr = self.optimiser.step(self.state.step, self.planned_steps())
        self.state.step += 1
        self._count_skipped(norm, rows)
        seconds = time.perf_counter() - began
        self.state.seconds += seconds
        return {
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "grad_norm_not_finite": float(not math.isfinite(norm)),
            "tokens_per_second": tokens / seconds,
            "time/step": seconds,
            "memory_gb": peak_memory_gb(),
        }

    def _count_skipped(self, norm: float, rows: list[int]) -> None:
        """Whether the optimiser has skipped this step, and whether that has happened too often."""
        state, limit = self.state, self.run.max_skipped
        state.skipped = 0 if math.isfinite(norm) else state.skipped + 1
        if self.budget.tokens < self.config.micro_batch_tokens:
            state.pass_tokens = self.budget.tokens
        if 0 < limit <= state.skipped:
            decode, told = self.model.tokenizer.decode, []
            for row in rows:
                sequence, _ = self.train_set.batch([row])
                prompt, response = sequence.tokens.tensor_split(sequence.prompt_lengths.cpu())
                told.append(
                    {"step": state.step, "row": row, "prompt": decode(prompt), "response": decode(response)}
                )
            self.problem = end_of_run(self.folder, state.step, state.skipped, told, "row {row}")
            state.skipped = 0  # whoever goes on from here wants to try again

    def planned_steps(self) -> int:
        """The step limit, or the number that the time limit leaves room for at the pace so far."""
        limit = self.config.minutes * 60
        if not limit or self.state.step < 3:
            return self.config.steps
        pace = self.state.seconds / self.state.step
        return min(self.config.steps, max(self.state.step + 1, int(limit / pace)))

    def _validate(self, log: RunLog) -> float:
        """Validation loss; keeps the weights if it is the best so far."""
        log.phase("validate")
        loss = within_memory(
            self.budget, partial(mean_loss, self.model, self.validation_set), self.validation_set.lengths
        )
        state = self.state
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.without_better = loss, state.step, 0
            publish_folder(self.folder / "policy", lambda f: save_language_model(self.model, f))
        else:
            state.without_better += 1
        return loss

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.state.without_better

    def _finished(self) -> bool:
        out_of_time = self.config.minutes > 0 and self.state.seconds >= self.config.minutes * 60
        return self.state.step >= self.config.steps or out_of_time or self._out_of_patience()

    def save(self, metrics: Mapping[str, float] | None = None) -> Path:
        """Write a checkpoint of the state after the newest step, whose metrics these are."""
        tensors: dict[str, Tensor] = {f"policy.{name}": p for name, p in self.model.trainable()}
        tensors |= {f"optimiser.{name}": t for name, t in self.optimiser.state_tensors().items()}
        state = asdict(self.state)  # a loss that is still infinite is null there
        state |= {"rows": len(self.train_set), "metrics": metrics or {}, "settings": settings_of(self.job)}
        return save_checkpoint(
            self.folder,
            self.state.step,
            tensors,
            state,
            Keep.of(self.run),
            lambda f: save_language_model(self.model, f),
        )

    @torch.no_grad()
    def resume(self) -> Path:
        """Go on from the newest whole checkpoint of the run's folder.

        Raises RunError, before anything is changed, where it does not fit the model, the text or the settings.
        """
        checkpoint = newest_checkpoint(self.folder)
        tensors, saved = load_checkpoint(checkpoint)
        check_settings(checkpoint, saved.get("settings"), self.job)
        learning = {f"policy.{name}": p for name, p in self.model.trainable()}
        check_fit(checkpoint, tensors, learning)
        if (rows := saved.get("rows")) != len(self.train_set):
            raise RunError(
                f"{checkpoint}: made with {rows} training rows, not {len(self.train_set)}; resume with the same text"
            )
        state = _state_from(checkpoint, saved)
        set_aside_newer(checkpoint)
        for name, p in learning.items():
            p.copy_(tensors[name])
        self.optimiser.load_state_tensors(with_prefix(tensors, "optimiser."))
        self.state = state
        if state.pass_tokens:
            self.budget.tokens = min(state.pass_tokens, self.budget.tokens)
        self.batches.skip(self.state.step)
        return checkpoint


def _state_from(checkpoint: Path, saved: Mapping[str, Any]) -> SupervisedState:
    """The state in a checkpoint. Raises RunError for a number that is not there."""
    names = ("step", "best_step", "without_better", "skipped", "pass_tokens")
    counts = numbers_of(checkpoint, saved, dict.fromkeys(names, int))
    times = numbers_of(checkpoint, saved, {"seconds": float})
    known = saved.get("best_loss") is not None
    best = numbers_of(checkpoint, saved, {"best_loss": float}) if known else {}
    return SupervisedState(**counts, **times, **best)


@torch.no_grad()
def mean_loss(model: LanguageModel, examples: Examples, micro_batch_tokens: int) -> float:
    """Mean negative log-likelihood per counted token over all examples, in nats."""
    total, count = 0.0, 0
    lengths = examples.lengths
    for rows in micro_batches(lengths, micro_batch_tokens):
        sequences, mask = examples.batch(rows.tolist())
        logprobs = token_outputs(model, sequences.to(model.device)).logprobs.cpu()
        total -= float(logprobs[mask].double().sum())
        count += int(mask.sum())
    return total / max(1, count)
