"""How many tokens fit in one pass, and how fast each size is: found by trying."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from proxlm.train.common.memory import is_out_of_memory
from proxlm.train.supervised.objective import Objective

# Of the memory that is free, a pass may take this share: others use the machine, too.
_SHARE = 0.7
_GIB = 2**30


@dataclass(frozen=True)
class PassSize:
    """One size that was tried.

    Attributes:
        tokens: The most tokens in the pass (train.micro_batch_tokens).
        rows: How many of the longest rows it held.
        seconds: Of forward and backward.
        memory_gb: The most memory that was held, in GiB; 0: not known.
        fits: Whether there was enough.
    """

    tokens: int
    rows: int
    seconds: float = 0.0
    memory_gb: float = 0.0
    fits: bool = True

    def rate(self, length: float) -> float:
        """Tokens a second, with rows of that length."""
        return self.rows * length / self.seconds if self.seconds else 0.0


def try_sizes(objective: Objective, largest: int) -> list[PassSize]:
    """Passes on the longest rows: as many as fit one row, and twice as many tokens each time, up to `largest`.

    It ends with the first size that does not fit: out of memory, or on a processor more than would leave the machine
    enough (there the system ends processes, and no error comes). Weights do not change; gradients are freed.
    """
    order = torch.argsort(objective.lengths, descending=True, stable=True)
    longest = int(objective.lengths[order[0]])
    sizes = [longest]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    found = list[PassSize]()
    for tokens in sizes:
        rows = order[: max(1, tokens // longest)].tolist()
        if found and not _will_fit(found, tokens):
            found.append(PassSize(tokens, len(rows), fits=False))
            break
        tried = _try(objective, rows, tokens)
        found.append(tried)
        if not tried.fits:
            break
    return found


def _try(objective: Objective, rows: list[int], tokens: int) -> PassSize:
    parameters = [p for _, p in objective.trainable()]
    _begin_peak()
    try:
        began = time.perf_counter()
        objective.gradient(rows, tokens)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return PassSize(tokens, len(rows), time.perf_counter() - began, _peak_gb())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        for p in parameters:
            p.grad = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return PassSize(tokens, len(rows), fits=False)


def _will_fit(found: list[PassSize], tokens: int) -> bool:
    """Whether a larger pass will leave the machine enough memory, by how it grew from size to size."""
    free = _free_gb()
    if torch.cuda.is_available() or not free or not found[-1].memory_gb:
        return True  # an error will say so
    grown = found[-1].memory_gb - found[0].memory_gb
    per_token = grown / max(1, found[-1].tokens - found[0].tokens)
    return per_token * (tokens - found[-1].tokens) < _SHARE * free


def _begin_peak() -> None:
    """Let the peak be that of what follows, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_gb() -> float:
    """The most memory since `_begin_peak`, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    return _kilobytes("/proc/self/status", "VmHWM:") / 2**20


def _free_gb() -> float:
    """Memory that the machine can still give, in GiB; 0: not known."""
    return _kilobytes("/proc/meminfo", "MemAvailable:") / 2**20 if os.name == "posix" else 0.0


def _kilobytes(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
