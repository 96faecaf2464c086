"""What a reward model learns: comparisons, scores, classes or steps, as its criterion says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.models.classifier import Classifier, save_classifier
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.train.common.passes import passes
from proxlm.train.supervised.criteria import Criterion
from proxlm.train.supervised.dropout import NO_DROPOUT, Dropout
from proxlm.train.supervised.labelled_texts import LabelledTexts, all_outputs, outputs_of


class RewardObjective:
    """The mean of a criterion's losses over the records."""

    def __init__(
        self,
        model: Classifier,
        training: LabelledTexts,
        validation: LabelledTexts,
        criterion: Criterion,
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        self.model, self.training, self.validation, self.criterion = model, training, validation, criterion
        self.dropout = dropout

    @property
    def lengths(self) -> Tensor:
        return self.training.lengths

    @property
    def validation_lengths(self) -> Tensor:
        return self.validation.lengths

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self.model.trainable()

    def begin_step(self, step: int) -> None:
        self.dropout.begin_step(step)

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        lengths = self.lengths[torch.tensor(rows)]
        loss, tokens = 0.0, int(self.training.text_lengths[torch.tensor(rows)].sum())
        for micro, weight in passes(lengths, micro_batch_tokens, ranks):
            part = [rows[i] for i in micro.tolist()]
            losses = self.losses_of(self.training_outputs(self.model, part), part)
            share = weight * losses.sum() / len(rows)
            share.backward()
            loss += float(share.detach())
        return loss, tokens

    def training_outputs(self, model: Classifier, rows: Sequence[int], number: int = 0) -> Tensor:
        """A model's outputs for training records, with dropout; number: of the model in an ensemble."""
        group = self.training.group
        texts = (torch.tensor(rows)[:, None] * group + torch.arange(group)).flatten()
        with self.dropout.on(texts, network=number):
            return outputs_of(model, self.training, rows)

    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        return self.metrics_of(all_outputs(self.model, self.validation, micro_batch_tokens, ranks))

    def metrics_of(self, outputs: Tensor) -> dict[str, float]:
        """The validation metrics of the outputs for all validation records."""
        targets = self.validation.targets(range(len(outputs)))
        losses = self.criterion.losses(outputs, targets)
        return {
            names.VALIDATION_LOSS: float(losses.double().mean()),
            **self.criterion.metrics(outputs, targets),
        }

    def losses_of(self, outputs: Tensor, rows: Sequence[int]) -> Tensor:
        """The losses of outputs for training records, [len(rows)]."""
        return self.criterion.training_losses(outputs, self.training.targets(rows).to(outputs.device))

    def samples(self, count: int) -> list[JsonRow]:
        """What the model says of the first validation records; of a comparison a row for each completion."""
        rows = list(range(min(count, len(self.validation))))
        if not rows:
            return []
        with torch.no_grad():
            outputs = outputs_of(self.model, self.validation, rows).cpu()
        if self.validation.group == 2:
            return [row for i in rows for row in self._compared(i, outputs[i, :, 0].tolist())]
        decode: Any = self.model.tokenizer.decode
        found = list[JsonRow]()
        for i in rows:
            targets = self.validation.targets([i])[0]
            own = outputs[i, : len(targets)] if len(self.validation.places) else outputs[i]
            text = decode(self.validation.row(i, 0))
            found.append(
                {"prompt_id": i, "prompt": "", "response": text, **self.criterion.sample(own, targets)}
            )
        return found

    def _compared(self, row: int, scores: Sequence[float]) -> list[JsonRow]:
        """Both texts of a comparison after what they share, as responses with their scores."""
        decode: Any = self.model.tokenizer.decode
        texts = [self.validation.row(row, side) for side in (0, 1)]
        shared = shared_start(*texts)
        return [
            {
                "prompt_id": row,
                "kind": name,
                "prompt": decode(text[:shared]),
                "response": decode(text[shared:]),
                "reward": score,
            }
            for name, text, score in zip(("chosen", "rejected"), texts, scores, strict=True)
        ]

    def save(self, folder: Path) -> None:
        with self.criterion.saving(self.model):
            save_classifier(self.model, folder)

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        decode: Any = self.model.tokenizer.decode
        sides = ("chosen", "rejected") if self.training.group == 2 else ("text",)
        return [
            {"row": row, **{name: decode(self.training.row(row, k)) for k, name in enumerate(sides)}}
            for row in rows
        ]


def shared_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
