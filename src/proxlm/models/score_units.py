"""Scores in units of their own: a model learns them standardised, and its saved head gives them as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proxlm.errors import DataError
from proxlm.models.classifier import Classifier
from proxlm.text import shown


@dataclass(frozen=True)
class ScoreUnits:
    """What one standardised score is: score = mean + scale · output, for each of K outputs.

    The head of a decoder's classifier has no bias that could hold the mean. There the mean is 0, and the head begins
    with a part along the states' own mean that gives the scores' mean (`begin_at`).

    Attributes:
        mean: [K] float64.
        scale: [K] float64, the standard deviation in the training part.
    """

    mean: Tensor
    scale: Tensor

    def standardised(self, scores: Tensor) -> Tensor:
        """Scores [n, K] → as the model learns them."""
        return ((scores.double() - self.mean) / self.scale).float()

    def in_units(self, outputs: Tensor) -> Tensor:
        """Outputs [n, K] → scores, float64."""
        return outputs.double() * self.scale + self.mean

    @contextmanager
    def folded_into(self, head: nn.Linear) -> Iterator[None]:
        """A context in which a head gives scores in their units; afterwards its weights are the same bits."""
        kept = [p.detach().clone() for p in head.parameters()]
        self.put_into(head)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before in zip(head.parameters(), kept, strict=True):
                    p.copy_(before)

    @torch.no_grad()
    def put_into(self, head: nn.Linear) -> None:
        """Let a head that gives scores standardised give them in their units."""
        scale = self.scale.to(head.weight.device)
        head.weight.copy_(head.weight.double() * scale[:, None])
        if head.bias is not None:
            head.bias.copy_(head.bias.double() * scale + self.mean.to(scale.device))

    @torch.no_grad()
    def taken_out_of(self, head: nn.Linear) -> None:
        """Let a head that gives scores in their units give them standardised: the inverse of `put_into`."""
        scale = self.scale.to(head.weight.device)
        head.weight.copy_(head.weight.double() / scale[:, None])
        if head.bias is not None:
            head.bias.copy_((head.bias.double() - self.mean.to(scale.device)) / scale)


def units_of(scores: Tensor, names: Sequence[str], has_bias: bool) -> tuple[ScoreUnits, Tensor]:
    """The units of training scores [n, K] (NaN: none), and what the mean output is to be [K].

    Raises:
        DataError: All scores of a name are the same, or there is none.
    """
    values, means, scales = scores.double(), list[float](), list[float]()
    for k, name in enumerate(names):
        own = values[:, k][~values[:, k].isnan()]
        if not len(own) or float(own.std(correction=0)) <= 1e-9 * float(own.abs().max()):
            found = f"all are {float(own[0]):g}" if len(own) else "none"
            raise DataError(
                f'labels.score_fields: "{shown(name)}": {found} in the training part; there is nothing to learn'
            )
        means.append(float(own.mean()))
        scales.append(float(own.std(correction=0)))
    mean, scale = torch.tensor(means, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)
    if has_bias:
        return ScoreUnits(mean, scale), torch.zeros_like(mean)
    return ScoreUnits(torch.zeros_like(mean), scale), mean / scale


def begin_at(model: Classifier, ids: Tensor, mask: Tensor, wanted: Tensor) -> None:
    """Let a new head without a bias begin with outputs around `wanted` [K], by least squares along the mean state.

    Args:
        model: A classifier whose head is all zeros.
        ids: Some texts [B, T], padded on the right.
        mask: Of their tokens.
        wanted: The mean that each output is to have.
    """
    weight = model.output_layer.weight
    # An output is the head's weight times a state, so its gradient is that state.
    (states,) = torch.autograd.grad(model.outputs(ids, mask).mean(0).sum(), weight)
    with torch.no_grad():
        weight.copy_(states)
        along = model.outputs(ids, mask)[:, 0]
        size = float(along.sum() / along.square().sum().clamp_min(1e-12))
        weight.copy_(wanted.to(weight)[:, None] * size * states)
