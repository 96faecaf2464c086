"""What the trainers of pretrain, sft, reward and dpo share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from proxlm.config import DPOConfig, PretrainConfig, RewardConfig, SFTConfig, validate
from proxlm.distributed.launch import joined_ranks
from proxlm.distributed.ranks import Ranks
from proxlm.jobs.in_memory import GivenRecords
from proxlm.models.source import ModelSource
from proxlm.report.run import Run
from proxlm.train.common.callbacks import Callback, Callbacks

C = TypeVar("C", PretrainConfig, SFTConfig, RewardConfig, DPOConfig)


class SupervisedTrainer(Generic[C]):
    """A job that trains one model.

    Attributes:
        config: Its settings, checked.
        source: The model.
    """

    config: C
    source: ModelSource

    def train(self) -> Run:
        """Train, keep the weights with the best validation loss, and write model and report to the run's folder.

        Raises:
            UserError: The data or the model cannot be used, or the run cannot continue.
            StoppedBySignalError: A signal has ended the run; its newest step is saved.
        """
        with self.source.lent(), joined_ranks(self.config.distributed.timeout) as ranks:
            return self._train(ranks)

    def _train(self, ranks: Ranks) -> Run:
        raise NotImplementedError


class RecordsTrainer(SupervisedTrainer[C]):
    """One that trains on records, which a Python caller may pass, as the model."""

    def _take(
        self,
        config: C,
        model: Any,
        tokenizer: Any,
        train: Iterable[Any] | str | Path | None,
        validation: Iterable[Any] | str | Path | None,
        callbacks: Sequence[Callback],
        field: str,
    ) -> None:
        """Take over what a caller passed; field: what a bare text or chat is. Raises UserError."""
        self.source = ModelSource(config.model, model, tokenizer)
        self._records = GivenRecords.of(train, validation, config.text, field)
        self._callbacks = Callbacks(callbacks)
        self._in_python = self._records.in_memory or self.source.in_memory
        config = replace(config, model=self.source.settings, text=self._records.named_in(config.text))
        self.config = validate(config, {"model.policy": "model", "text.train": "train"})
