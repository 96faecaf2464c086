"""A training run of one process or several: rank 0 leads it, the others do their share of what it calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from proxlm.checkpoint import with_prefix
from proxlm.distributed.ranks import Ranks
from proxlm.models.sharded import assign, whole
from proxlm.runlog.run_log import NoLog, RunLog
from proxlm.train.common.run_loop import LoopState, TrainingConfig, TrainingLoop

S = TypeVar("S", bound=LoopState)


class SharedLoop(TrainingLoop[S]):
    """A loop whose steps all ranks take together: rank 0 calls `synchronise` and `train`, the others `follow`.

    Args:
        config: See `TrainingLoop`.
        folder: The same; only rank 0 writes there.
        state: The same.
        ranks: The processes that train together.
        sharded: Whether each holds a share of the weights only.
    """

    def __init__(self, config: TrainingConfig, folder: Path, state: S, ranks: Ranks, sharded: bool) -> None:
        super().__init__(config, folder, state)
        self.ranks, self.sharded = ranks, sharded
        self._resumed: Mapping[str, Tensor] = {}
        ranks.offer(self.handlers())

    @abstractmethod
    def step(self, log: RunLog | NoLog) -> dict[str, float]:
        """One step, which all ranks take together; see `TrainingLoop`."""

    def copies(self) -> Iterable[tuple[Tensor, Tensor | None]]:
        """Where weights are sharded: each that learns, and its copy in the whole model that samples and is saved;
        None on a rank that has no such model.
        """
        return []

    def extra_of_all(self) -> dict[str, Tensor]:
        """Those of `extra_tensors` that the other ranks need, too, to go on."""
        return with_prefix(self._resumed, "extra.") if self.sharded else self.extra_tensors()

    def handlers(self) -> dict[str, Callable[..., object]]:
        """What rank 0 can call on the others, by name."""
        return {
            "synchronise": self._synchronise,
            "whole": self._whole_tensors,
            "refresh": self._refresh,
            "step": lambda: self.step(NoLog(self.ranks.phase)),
        }

    def next_step(self, log: RunLog) -> dict[str, float]:
        self.ranks.call("step")
        return self.step(log)

    def synchronise(self) -> None:
        """Give the other ranks what rank 0 has: weights, the optimisers' state and counters. Once, before `train`."""
        self.ranks.call("synchronise")
        self._synchronise()

    def follow(self) -> Any:
        """What a rank other than 0 does instead of `train`: its share of what rank 0 calls, until that has made what
        this returns (`Ranks.broadcast`).
        """
        try:
            return self.ranks.serve()
        finally:
            self.close()

    def refresh(self) -> None:
        """On rank 0, before the whole copy is used outside `step`: bring it up to date, where there is one."""
        if self.sharded:
            self.ranks.call("refresh")
            self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        for p, copy in self.copies():
            gathered = whole(p)
            if copy is not None:
                copy.copy_(gathered)

    def whole_tensors(self) -> dict[str, Tensor]:
        if not self.sharded:
            return super().whole_tensors()
        self.refresh()  # the model is saved, too
        self.ranks.call("whole")
        return self._whole_tensors()

    def _whole_tensors(self) -> dict[str, Tensor]:
        """On rank 0 all of them, in the processor's memory; another rank only gives its shares."""
        found = dict[str, Tensor]()
        for name, tensor in super().whole_tensors().items():
            gathered = whole(tensor)
            if self.ranks.rank == 0:
                found[name] = gathered.cpu()
        return found

    def take_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if self.sharded:
            self._resumed = tensors  # `synchronise` gives each rank its part
        else:
            super().take_tensors(tensors)

    @torch.no_grad()
    def _synchronise(self) -> None:
        self.state = self.ranks.broadcast(lambda: self.state)
        own = self.learnt_tensors()
        if not self.sharded:
            self.ranks.copy_from_first(own.values())
            if self.ranks.rank > 0 and self.state.step:  # what an optimiser does not keep as such tensors
                super().take_tensors(own)
        elif self.state.step:
            for name, tensor in own.items():
                value = self._resumed.get(name, torch.empty(tensor.shape, dtype=tensor.dtype))
                self.ranks.copy_from_first([value])
                assign(tensor, value)
        if self.state.step:
            extra = self.ranks.broadcast(self.extra_of_all)
            if self.ranks.rank > 0:
                self.restore(self.folder, self.state, extra)
        self._resumed = {}
