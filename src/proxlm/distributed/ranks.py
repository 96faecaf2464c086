"""Ranks: the processes that train one model together, each with a copy of the weights or a shard of them.

The data of a step (prompts, responses, scores and every per-token number) is the same on all ranks; they share the
passes over it. So statistics of the batch need no communication, and cannot differ between ranks. What ranks exchange
are the per-token results of their passes, gradients, the losses of an optimiser step, and whether a pass ran out of
memory.

Rank 0 leads: it alone reads prompts, calls rewards, writes files and speaks to the user. The others wait in `serve`
for what it calls (`call`); while it makes something for all of them (`broadcast`) it may call them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from proxlm.errors import RAISED_ON_RANK_0

T = TypeVar("T")
# How rank 0 ends the others' waiting; names of calls are words.
_RETURN, _RAISE = "<return>", "<raise>"


class Ranks(Protocol):
    """The group of processes that this one belongs to. Every method must be called by all ranks, in the same order.

    rank: this process's number, from 0; size: how many processes there are.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def phase(self, name: str) -> None:
        """This rank begins a part of its work; alone of all methods it may be called by one rank only."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over ranks; the same bits on all of them. `tensor` stays as it is."""
        ...

    def max(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over ranks. `tensor` stays as it is."""
        ...

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, a gradient for instance, by its sum over ranks; sharded ones are such sums already."""
        ...

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, where alone it is called; what it raises there is raised on all ranks.

        Until then the other ranks serve.
        """
        ...

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's, in place."""
        ...

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` returns on each rank, in their order, on rank 0; nothing on the others.

        Raises:
            Exception: On rank 0: what `make` has raised on the first rank where it has.
        """
        ...

    def call(self, name: str, *given: Any) -> None:
        """On rank 0: have the others, who serve, call what they have under this name. It may communicate, as may what
        rank 0 does next.
        """
        ...

    def offer(self, handlers: Mapping[str, Callable[..., object]]) -> None:
        """On the other ranks: what rank 0 can call here, by name."""
        ...

    def serve(self) -> Any:
        """On the other ranks: do what rank 0 calls, until it has made what this returns (`broadcast`).

        Raises:
            Exception: What rank 0 has raised, with the note RAISED_ON_RANK_0.
        """
        ...


class OneProcess:
    """A run in a single process: nothing to communicate, and nothing is copied."""

    rank = 0
    size = 1

    def phase(self, name: str) -> None:
        pass

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        pass

    def broadcast(self, make: Callable[[], T]) -> T:
        return make()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        pass

    def gather(self, make: Callable[[], T]) -> list[T]:
        return [make()]

    def call(self, name: str, *given: Any) -> None:
        pass

    def offer(self, handlers: Mapping[str, Callable[..., object]]) -> None:
        pass

    def serve(self) -> Any:
        raise ValueError("rank 0 does not serve")


ONE_PROCESS = OneProcess()


def made_on_all(ranks: Ranks, make: Callable[[], T]) -> T:
    """What `make`, which must not communicate, returns on each rank. Where it fails on rank 0, all raise that error.

    Raises:
        Exception: What `make` has raised, of rank 0 or else of this rank.
    """
    made, error = list[T](), None
    try:
        made.append(make())
    except Exception as raised:  # kept until rank 0 has said the same, or that it has none
        error = raised

    def first() -> None:
        if error is not None:
            raise error

    ranks.broadcast(first)
    first()
    return made[0]


class TorchRanks:
    """The ranks of a torch.distributed process group, which must be initialised.

    Args:
        group: The process group; None for the default one, of all processes.
        device: Where the backend wants tensors: None leaves them where they are (gloo), a GPU for NCCL.
        on_phase: Called with the name of each part of the work.
    """

    def __init__(
        self,
        group: torch.distributed.ProcessGroup | None = None,
        device: torch.device | None = None,
        on_phase: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.group, self.device, self.phase = group, device, on_phase
        self._handlers: Mapping[str, Callable[..., object]] = {}
        self._raised: Exception | None = None

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
            if not isinstance(tensor, DTensor):  # what is sharded is added up in the backward pass
                torch.distributed.all_reduce(tensor, group=self.group)

    def broadcast(self, make: Callable[[], T]) -> T:
        if self.rank > 0:
            value: T = self.serve()
            return value
        try:
            made = make()
        except Exception as error:
            if error is not self._raised:  # else the others have it from a broadcast inside this one
                self._raised = error
                with suppress(RuntimeError):  # they may be gone; why is in the error
                    self._send(_RAISE, error)
            raise
        self._send(_RETURN, made)
        return made

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            on_device = tensor.detach().to(self.device or tensor.device)
            torch.distributed.broadcast(on_device, group_src=0, group=self.group)
            tensor.detach().copy_(on_device)

    def gather(self, make: Callable[[], T]) -> list[T]:
        found: tuple[T | None, Exception | None] = (None, None)
        try:
            found = (make(), None)
        except Exception as error:  # or rank 0 would wait for it
            found = (None, error)
        every: list[Any] | None = [None] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(found, every, group_dst=0, group=self.group)
        for _, raised in every or []:
            if raised is not None:
                raise raised
        return [value for value, _ in every or []]

    def call(self, name: str, *given: Any) -> None:
        self._send(name, given)

    def offer(self, handlers: Mapping[str, Callable[..., object]]) -> None:
        self._handlers = handlers

    def serve(self) -> Any:
        while True:
            self.phase("waiting for rank 0")
            name, given = self._received()
            if name == _RETURN:
                return given
            if name == _RAISE:
                given.add_note(RAISED_ON_RANK_0)
                raise given
            self._handlers[name](*given)

    def _send(self, name: str, given: Any) -> None:
        torch.distributed.broadcast_object_list(
            [name, given], group_src=0, group=self.group, device=self.device
        )

    def _received(self) -> tuple[str, Any]:
        message: list[Any] = [None, None]
        try:
            torch.distributed.broadcast_object_list(
                message, group_src=0, group=self.group, device=self.device
            )
        except RuntimeError as error:  # rank 0 has ended between two calls, and says why itself
            error.add_note(RAISED_ON_RANK_0)
            raise
        return message[0], message[1]

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        on_device = tensor.to(self.device or tensor.device, copy=True)
        torch.distributed.all_reduce(on_device, operation, group=self.group)
        return on_device.to(tensor.device)
