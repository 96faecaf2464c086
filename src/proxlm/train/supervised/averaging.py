"""Averages of the weights over a run, which may do better than the last ones (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from proxlm.config import SupervisedSettings
from proxlm.models.sharded import assign, part

Named = Sequence[tuple[str, nn.Parameter]]


class WeightAverage:
    """The mean of the weights at the last k validations (uniform), or an exponential one over all steps (ema).

    ema: after the first step the weights themselves, then mean ← d · mean + (1 − d) · weights after each step.

    Of sharded weights each rank averages its part.

    Args:
        named: The parameters that learn.
        settings: `average`, `average_last` and `ema_decay`.
    """

    def __init__(self, named: Named, settings: SupervisedSettings) -> None:
        self.names, self.parameters = [name for name, _ in named], [p for _, p in named]
        self.kind, self.last = settings.average, settings.average_last
        self._move = get_ema_multi_avg_fn(settings.ema_decay)
        self._kept: list[list[Tensor]] = []  # the snapshots, the newest last; of ema the mean alone

    def after_step(self) -> None:
        """Count the weights after an optimiser step."""
        if self.kind == "ema" and self._kept:
            self._move(_parts(self._kept[0]), _parts(self.parameters), 0)
        elif self.kind == "ema":
            self._kept = [_copies(self.parameters)]

    def at_validation(self) -> None:
        """Count the weights at a validation."""
        if self.kind == "uniform":
            self._kept = [*self._kept[-self.last + 1 :], _copies(self.parameters)][-self.last :]

    @property
    def differs(self) -> bool:
        """Whether there is a mean that is not the newest weights themselves."""
        return self.kind == "ema" or len(self._kept) > 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the mean weights."""
        own = _parts(self.parameters)
        plain = _copies(own)
        kept = zip(*(_parts(copies) for copies in self._kept), strict=True)
        _set(own, [torch.stack(of_one).mean(0) for of_one in kept])
        try:
            yield
        finally:
            _set(own, plain)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: `NUMBER.NAME`; sharded as the weights are."""
        return {
            f"average.{i}.{name}": tensor
            for i, kept in enumerate(self._kept)
            for name, tensor in zip(self.names, kept, strict=True)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`, of whole ones. Raises KeyError or RuntimeError for tensors of another model."""
        count = len([key for key in tensors if key.startswith("average.")]) // max(1, len(self.names))
        kept = [_copies(self.parameters) for _ in range(count)]
        for i, copies in enumerate(kept):
            for name, copy in zip(self.names, copies, strict=True):
                assign(copy, tensors[f"average.{i}.{name}"])
        self._kept = kept


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def _parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [part(tensor) for tensor in tensors]


@torch.no_grad()
def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
