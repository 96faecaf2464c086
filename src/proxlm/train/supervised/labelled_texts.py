"""Texts with labels as tokens: what a classifier is trained on, and how its batches are padded."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.errors import DataError
from proxlm.models.classifier import Classifier
from proxlm.rl.ragged import offsets_of
from proxlm.train.common.memory import failing_together
from proxlm.train.common.passes import passes


@dataclass(frozen=True)
class LabelledTexts:
    """n examples, each of `group` texts and with some numbers.

    Attributes:
        tokens: All texts, one after another, [N] int32.
        offsets: Where each text begins, [n · group + 1].
        numbers: All numbers, one example after another, float32.
        number_offsets: Where each example's numbers begin, [n + 1].
        places: For each number the token of the example's text that it belongs to, int32; empty: to the whole text.
        group: Texts of an example: 2 for a comparison, the chosen one first.
    """

    tokens: Tensor
    offsets: Tensor
    numbers: Tensor
    number_offsets: Tensor
    places: Tensor
    group: int

    @staticmethod
    def of(
        examples: Iterable[tuple[Sequence[Sequence[int]], Sequence[float], Sequence[int]]], group: int
    ) -> LabelledTexts:
        """From (the tokens of each text, the numbers, their places if they have some) of each example."""
        tokens, lengths = array("i"), array("q")
        numbers, counts, places = array("f"), array("q"), array("i")
        for texts, own, at in examples:
            for text in texts:
                tokens.extend(text)
                lengths.append(len(text))
            numbers.extend(own)
            counts.append(len(own))
            places.extend(at)
        return LabelledTexts(
            _tensor(tokens, torch.int32), offsets_of(_tensor(lengths, torch.int64)),
            _tensor(numbers, torch.float32), offsets_of(_tensor(counts, torch.int64)),
            _tensor(places, torch.int32), group,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.number_offsets) - 1

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
        tokens, offsets = _selected(self.tokens, self.offsets, texts)
        numbers, number_offsets = _selected(self.numbers, self.number_offsets, rows)
        places = _selected(self.places, self.number_offsets, rows)[0] if len(self.places) else self.places
        return LabelledTexts(tokens, offsets, numbers, number_offsets, places, self.group)

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

    def targets(self, rows: Sequence[int]) -> Tensor:
        """The numbers of the given examples, [len(rows), most]; NaN where one has fewer."""
        parts = [self.numbers[self._span(i)] for i in rows]
        return pad_sequence(parts, batch_first=True, padding_value=math.nan)

    def places_of(self, rows: Sequence[int]) -> Tensor:
        """The places of these numbers, [len(rows), most] int64; 0 where there is none."""
        return pad_sequence([self.places[self._span(i)] for i in rows], batch_first=True).long()

    def _span(self, example: int) -> slice:
        return slice(int(self.number_offsets[example]), int(self.number_offsets[example + 1]))


def _tensor(values: array[int] | array[float], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(values, dtype=dtype) if values else torch.zeros(0, dtype=dtype)


def _selected(values: Tensor, offsets: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The given rows of a ragged tensor, and their offsets."""
    starts, ends = offsets[:-1].tolist(), offsets[1:].tolist()
    lengths = torch.tensor([ends[i] - starts[i] for i in rows], dtype=torch.int64)
    return torch.cat([values[starts[i] : ends[i]] for i in rows]), offsets_of(lengths)


def outputs_of(model: Classifier, texts: LabelledTexts, rows: Sequence[int]) -> Tensor:
    """The model's outputs for the given examples: for their texts [len(rows), group, K], or at the places of their
    numbers [len(rows), most, K]."""
    outputs = model.outputs(*texts.batch(rows, model.pad_id))
    if len(texts.places):
        places = texts.places_of(rows).to(outputs.device)
        return outputs.gather(1, places[:, :, None].expand(-1, -1, outputs.shape[-1]))
    return outputs.view(len(rows), texts.group, -1)


@torch.no_grad()
def all_outputs(
    model: Classifier, texts: LabelledTexts, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
) -> Tensor:
    """Its outputs for all examples, as `outputs_of`, on the CPU; 0 where an example has fewer numbers.

    ranks: They share the passes, and all get all outputs.
    """
    most = int((texts.number_offsets[1:] - texts.number_offsets[:-1]).max()) if len(texts.places) else 0

    def own() -> Tensor:
        found = torch.zeros(0)
        for rows, weight in passes(texts.lengths, micro_batch_tokens, ranks):
            part = weight * outputs_of(model, texts, rows.tolist()).cpu()
            if not len(found):
                found = torch.zeros(len(texts), most or part.shape[1], part.shape[2])
            found[rows, : part.shape[1]] += part
        return found

    return ranks.sum(failing_together(ranks, own))
