"""What a reward model learns: that the better of two completions scores higher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm.config import ObjectiveSettings
from proxlm.models.classifier import Classifier, save_classifier
from proxlm.models.forward import micro_batches
from proxlm.rl.preference_losses import bradley_terry_loss, centring_penalty, share_preferred
from proxlm.runlog import metric_names as names
from proxlm.runlog.folder import JsonRow
from proxlm.train.supervised.labelled_texts import LabelledTexts, all_outputs, outputs_of


class RewardObjective:
    """The mean Bradley–Terry loss of the comparisons, in nats, with a term that keeps scores around 0 if asked."""

    def __init__(
        self,
        model: Classifier,
        training: LabelledTexts,
        validation: LabelledTexts,
        settings: ObjectiveSettings,
    ) -> None:
        self.model, self.training, self.validation, self.settings = model, training, validation, settings

    @property
    def lengths(self) -> Tensor:
        return self.training.lengths

    @property
    def validation_lengths(self) -> Tensor:
        return self.validation.lengths

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self.model.trainable()

    def gradient(self, rows: Sequence[int], micro_batch_tokens: int) -> tuple[float, int]:
        lengths = self.lengths[torch.tensor(rows)]
        loss, tokens = 0.0, int(self.training.text_lengths[torch.tensor(rows)].sum())
        for micro in micro_batches(lengths, micro_batch_tokens):
            part = [rows[i] for i in micro.tolist()]
            share = self._losses(
                self.training, part, outputs_of(self.model, self.training, part)
            ).sum() / len(rows)
            share.backward()
            loss += float(share.detach())
        return loss, tokens

    def validate(self, micro_batch_tokens: int) -> dict[str, float]:
        return self.metrics_of(all_outputs(self.model, self.validation, micro_batch_tokens))

    def metrics_of(self, outputs: Tensor) -> dict[str, float]:
        """The validation metrics of scores [n, 2, 1]."""
        losses = self._losses(self.validation, list(range(len(outputs))), outputs)
        leads = outputs[:, 0, 0].double() - outputs[:, 1, 0].double()
        return {
            names.VALIDATION_LOSS: float(losses.double().mean()),
            names.VALIDATION_ACCURACY: float(share_preferred(leads).mean()),
            names.VALIDATION_MARGIN: float(leads.mean()),
            names.VALIDATION_SCORE: float(outputs.double().mean()),
        }

    def _losses(self, texts: LabelledTexts, rows: Sequence[int], outputs: Tensor) -> Tensor:
        """The loss of each comparison, [len(rows)]."""
        chosen, rejected = outputs[:, 0, 0], outputs[:, 1, 0]
        margins = texts.targets[torch.tensor(rows), 0].to(outputs.device)
        loss = bradley_terry_loss(chosen, rejected, margins, self.settings.label_smoothing)
        if self.settings.centring:
            loss = loss + self.settings.centring * centring_penalty(chosen, rejected)
        return loss

    def samples(self, count: int) -> list[JsonRow]:
        """Both texts of a comparison after what they share, as responses with their scores."""
        rows = list(range(min(count, len(self.validation_lengths))))
        if not rows:
            return []
        decode: Any = self.model.tokenizer.decode
        with torch.no_grad():
            outputs = outputs_of(self.model, self.validation, rows)[:, :, 0].tolist()
        found = list[JsonRow]()
        for row, scores in zip(rows, outputs, strict=True):
            texts = [self.validation.row(row, side) for side in (0, 1)]
            shared = shared_start(*texts)
            for name, text, score in zip(("chosen", "rejected"), texts, scores, strict=True):
                prompt, response = decode(text[:shared]), decode(text[shared:])
                found.append(
                    {"prompt_id": row, "kind": name, "prompt": prompt, "response": response, "reward": score}
                )
        return found

    def save(self, folder: Path) -> None:
        save_classifier(self.model, folder)

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        decode: Any = self.model.tokenizer.decode
        return [
            {
                "row": row,
                "chosen": decode(self.training.row(row, 0)),
                "rejected": decode(self.training.row(row, 1)),
            }
            for row in rows
        ]


def shared_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
