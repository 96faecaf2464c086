"""Texts with labels as tokens: what a classifier is trained on, and how its batches are padded."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.errors import DataError
from proxlm.models.classifier import Classifier
from proxlm.models.forward import micro_batches
from proxlm.rl.ragged import offsets_of


@dataclass(frozen=True)
class LabelledTexts:
    """n examples, each of `group` texts and with T numbers.

    Attributes:
        tokens: All texts, one after another, [N] int32.
        offsets: Where each text begins, [n · group + 1].
        targets: [n, T].
        group: Texts of an example: 2 for a comparison, the chosen one first.
    """

    tokens: Tensor
    offsets: Tensor
    targets: Tensor
    group: int

    @staticmethod
    def of(examples: Iterable[tuple[Sequence[Sequence[int]], Sequence[float]]], group: int) -> LabelledTexts:
        """From (the tokens of each text, the numbers) of each example."""
        tokens, lengths, targets = array("i"), array("q"), list[Sequence[float]]()
        for texts, numbers in examples:
            for text in texts:
                tokens.extend(text)
                lengths.append(len(text))
            targets.append(numbers)
        made = torch.frombuffer(tokens, dtype=torch.int32) if tokens else torch.zeros(0, dtype=torch.int32)
        return LabelledTexts(
            made, offsets_of(torch.tensor(lengths.tolist(), dtype=torch.int64)),
            torch.tensor(targets, dtype=torch.float32).view(len(targets), -1), group,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def text_lengths(self) -> Tensor:
        """Tokens of each text, [n, group]."""
        return (self.offsets[1:] - self.offsets[:-1]).view(-1, self.group)

    @property
    def lengths(self) -> Tensor:
        """Tokens that a pass reads of each example, the texts padded to its longest, [n]."""
        return self.group * self.text_lengths.amax(1)

    def select(self, rows: Sequence[int]) -> LabelledTexts:
        """The given examples. Raises DataError if there is none."""
        if not len(rows):
            raise DataError("no record that can be used is left for training or for validation")
        texts = [i * self.group + k for i in rows for k in range(self.group)]
        starts, ends = self.offsets[:-1].tolist(), self.offsets[1:].tolist()
        return LabelledTexts(
            torch.cat([self.tokens[starts[i] : ends[i]] for i in texts]),
            offsets_of(torch.tensor([ends[i] - starts[i] for i in texts], dtype=torch.int64)),
            self.targets[torch.tensor(rows, dtype=torch.int64)],
            self.group,
        )

    def row(self, example: int, text: int) -> list[int]:
        """The tokens of one text of an example."""
        i = example * self.group + text
        row: list[int] = self.tokens[int(self.offsets[i]) : int(self.offsets[i + 1])].tolist()
        return row

    def batch(self, rows: Sequence[int], pad: int) -> tuple[Tensor, Tensor]:
        """The texts of the given examples, padded on the right, and their mask: [len(rows) · group, T] int64 each."""
        texts = [self.row(i, k) for i in rows for k in range(self.group)]
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.tensor(text)
            mask[i, : len(text)] = 1
        return ids, mask


def outputs_of(model: Classifier, texts: LabelledTexts, rows: Sequence[int]) -> Tensor:
    """The model's outputs for the texts of the given examples, [len(rows), group, K]."""
    outputs = model.outputs(*texts.batch(rows, model.pad_id))
    return outputs.view(len(rows), texts.group, -1)


@torch.no_grad()
def all_outputs(model: Classifier, texts: LabelledTexts, micro_batch_tokens: int) -> Tensor:
    """Its outputs for all examples, [n, group, K], on the CPU."""
    found = torch.zeros(0)
    for rows in micro_batches(texts.lengths, micro_batch_tokens):
        part = outputs_of(model, texts, rows.tolist()).cpu()
        if not len(found):
            found = torch.zeros(len(texts), *part.shape[1:])
        found[rows] = part
    return found
