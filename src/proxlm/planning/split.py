"""Ways to divide GPUs between training and writing responses, as proxlm runs them, and what each needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from proxlm.planning.cost import exchange_cost, generate_cost, phases_of
from proxlm.planning.machine import Machine
from proxlm.planning.memory import Memory, Share, kv_bytes, memory_of
from proxlm.planning.work import Work

Strategy = Literal["ddp", "fsdp"]
# Of a server's memory, what vLLM takes by itself.
OF_SERVER = 0.9


@dataclass(frozen=True)
class Split:
    """One way.

    Attributes:
        strategy: How the trainers hold weights.
        trainers: GPUs that train.
        servers: GPUs that write responses with vLLM; 0: the trainers do it themselves.
        memory: Of one trainer.
        server_bytes: Of one server's GPU: weights, and keys and values of its rows; 0: there is none.
        seconds: By phase of a step.
        fits: Whether both fit.
        beside: Whether servers write the next steps' responses while this one is learnt from.
    """

    strategy: Strategy
    trainers: int
    servers: int
    memory: Memory
    server_bytes: float
    seconds: dict[str, float]
    fits: bool
    beside: bool = False

    @property
    def step(self) -> float:
        """Seconds of a step: one phase after the other, as proxlm runs them, or the longer of both sides."""
        writing = sum(self.seconds.get(name, 0.0) for name in ("generate", "weights to servers"))
        learning = sum(self.seconds.values()) - writing
        return max(writing, learning) if self.beside else writing + learning

    @property
    def fullest(self) -> float:
        """Bytes of the fullest GPU."""
        return max(self.memory.peak, self.server_bytes)


def splits(work: Work, gpus: int, memory: float, machine: Machine) -> list[Split]:
    """Every way that is compared: the best by seconds comes first, those that fit before those that do not.

    Args:
        work: The step.
        gpus: How many there are.
        memory: Bytes of each.
        machine: One of them.
    """
    found = [split_of(work, *way, memory, machine) for way in _ways(work, gpus)]
    return sorted(found, key=lambda split: (not split.fits, split.step if split.fits else split.fullest))


def _ways(work: Work, gpus: int) -> Iterator[tuple[Strategy, int, int]]:
    strategies: list[Strategy] = ["ddp"]
    if not work.ahead:
        strategies.append("fsdp")
    several = (
        {*(2**i for i in range(gpus.bit_length())), gpus // 2, 3 * gpus // 4} if work.job == "ppo" else set()
    )
    for servers in sorted({0, *several}):
        trainers = gpus - servers
        if trainers < 1:
            continue
        for strategy in strategies:
            if trainers > 1 or strategy == "ddp":
                yield strategy, trainers, servers


def split_of(
    work: Work, strategy: Strategy, trainers: int, servers: int, memory: float, machine: Machine
) -> Split:
    """What one way needs; the arguments are as in `splits` and `Split`."""
    share = Share(trainers, strategy == "fsdp", samples=not servers, gpu=True)
    held = memory_of(work, share)
    seconds = {name: machine.seconds(cost, work.bfloat16) for name, cost in phases_of(work, share).items()}
    of_server = server_bytes(work, servers) if servers else 0.0
    if servers:
        seconds["generate"] = machine.seconds(generate_cost(work, servers, graphs=True), work.decode <= 2)
        # Written to the shared folder by rank 0, read by the servers.
        seconds["weights to servers"] = 2 * 4.0 * work.policy.parameters / machine.disk
    if trainers > 1:
        seconds["exchange"] = machine.seconds(exchange_cost(work, share))
    order = ("generate", "score", "update", "exchange", "weights to servers")
    fits = held.peak <= memory and of_server <= OF_SERVER * memory
    return Split(
        strategy,
        trainers,
        servers,
        held,
        of_server,
        {name: seconds[name] for name in order if name in seconds},
        fits,
        beside=bool(servers and work.ahead),
    )


def server_bytes(work: Work, servers: int) -> float:
    """One server's weights, and the keys and values of the rows that it writes at once."""
    number = 2.0 if work.decode <= 2 else 4.0
    rows = math.ceil(min(work.slots, work.responses) / servers)
    return work.decode * work.policy.parameters + kv_bytes(
        work.policy, rows, work.prompt + work.limit, number
    )
