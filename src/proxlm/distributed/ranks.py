"""Ranks: the processes that train one model together, each with a copy of the weights or a shard of them.

The data of a step (prompts, responses, scores and every per-token number) is the same on all ranks; they share the
passes over it. So statistics of the batch need no communication, and cannot differ between ranks. What ranks exchange
are the per-token results of their passes, gradients, the losses of an optimiser step, and whether a pass ran out of
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """The group of processes that this one belongs to. Every method must be called by all ranks, in the same order.

    rank: this process's number, from 0; size: how many processes there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over ranks; the same bits on all of them. `tensor` stays as it is."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over ranks. `tensor` stays as it is."""
        ...

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, a gradient for instance, by its sum over ranks."""
        ...

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, where alone it is called; what it raises there is raised on all ranks."""
        ...


class OneProcess:
    """A run in a single process: nothing to communicate, and nothing is copied."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        pass

    def broadcast(self, make: Callable[[], T]) -> T:
        return make()


ONE_PROCESS = OneProcess()


class TorchRanks:
    """The ranks of a torch.distributed process group, which must be initialised.

    Args:
        group: The process group; None for the default one, of all processes.
        device: Where the backend wants tensors: None leaves them where they are (gloo), a GPU for NCCL.
    """

    def __init__(
        self, group: torch.distributed.ProcessGroup | None = None, device: torch.device | None = None
    ) -> None:
        self.group, self.device = group, device

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank(self.group)

    @property
    def size(self) -> int:
        return torch.distributed.get_world_size(self.group)

    def sum(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, torch.distributed.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        return self._reduced(tensor, torch.distributed.ReduceOp.MAX)

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, group=self.group)

    def broadcast(self, make: Callable[[], T]) -> T:
        made: list[Any] = [None, None]  # the value, or what was raised
        if self.rank == 0:
            try:
                made[0] = make()
            except Exception as error:
                made[1] = error
        torch.distributed.broadcast_object_list(made, src=0, group=self.group, device=self.device)
        if made[1] is not None:
            raise made[1]
        value: T = made[0]
        return value

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        on_device = tensor.to(self.device or tensor.device, copy=True)
        torch.distributed.all_reduce(on_device, operation, group=self.group)
        return on_device.to(tensor.device)
