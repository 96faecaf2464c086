"""How a process that torchrun has started joins the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from proxlm.distributed.environment import max_restarts, rank, restarts, restarts_apart, world_size
from proxlm.distributed.heartbeat import Heartbeat
from proxlm.distributed.ranks import ONE_PROCESS, Ranks, TorchRanks
from proxlm.errors import ConfigError, RunError
from proxlm.text import reason_of

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What torch says where another process is gone or does not answer; gloo's errors have no type of their own.
_LOST = ("gloo", "connection closed", "connection reset", "timed out", "timeout", "broken pipe")


@contextmanager
def joined_ranks(timeout_minutes: float) -> Iterator[Ranks]:
    """The ranks of this run: those that torchrun has started, or this process alone.

    Args:
        timeout_minutes: How long a rank waits for the others before it ends with an error.

    Raises:
        ConfigError: Only some of torchrun's variables are there.
        RunError: The others cannot be reached, or are lost while the context lasts.
    """
    if world_size() == 1:
        yield ONE_PROCESS
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} is not set: start the processes with torchrun or"
            " proxlm launch, or unset WORLD_SIZE"
        )
    if restarts_apart():
        raise ConfigError(
            "--max-restarts is for one machine: each of torchrun's agents counts its own restarts; leave it out, and"
            " go on with --run.resume true when a process was lost"
        )
    device, heartbeat = None, None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        timeout = timedelta(minutes=timeout_minutes)
        store, number, size = next(rendezvous("env://", timeout=timeout))
        # The agent's store outlives a restart, and holds the addresses of the processes before it.
        store = PrefixStore(f"restart-{restarts()}", store)
        heartbeat = Heartbeat(store, number, size, timeout.total_seconds())
        torch.distributed.init_process_group(
            "gloo" if device is None else "nccl", timeout=timeout, store=store, rank=number, world_size=size
        )
        if number == 0 and restarts():
            print(
                f"note: all processes were started again, {restarts()} of {max_restarts()} times", flush=True
            )
        yield TorchRanks(device=device, on_phase=heartbeat.enter)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        reason = (
            f"another rank has ended or does not answer ({reason_of(error, 90)}); its own message says why"
        )
        if heartbeat is not None and "time" in str(error).lower():
            waited = f"{timeout_minutes:g} minutes (distributed.timeout)"
            reason = f"waited {waited} for the others; {heartbeat.others()}"
        again = "torchrun starts all again" if restarts() < max_restarts() else "go on with --resume"
        lost = RunError(f"rank {rank()} of {world_size()}: {reason}; {again}")
        for note in getattr(error, "__notes__", ()):
            lost.add_note(note)
        raise lost from error
    finally:
        if heartbeat is not None:
            heartbeat.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return any(phrase in str(error).lower() for phrase in _LOST)
