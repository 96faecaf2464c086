"""How long the phases of a step take, and how much memory the run has held."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


def peak_memory_gb() -> float:
    """The most memory held so far, in GiB: on the GPU if one is used, else by this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Stopwatch:
    """Measures seconds by phase; a phase may come more than once.

    Args:
        on_phase: Called with the name of each phase when it begins.

    Attributes:
        seconds: Seconds by phase so far.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda _name: None) -> None:
        self.on_phase, self.seconds = on_phase, dict[str, float]()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.on_phase(phase)
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def time_metrics(self) -> dict[str, float]:
        """`time/PHASE` in seconds."""
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}


class StepLog(Protocol):
    """Receives how far a step is: the run's log, or an object that keeps it for that log."""

    def phase(self, name: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


class Clock(Stopwatch):
    """The stopwatch of a PPO step, which shows its phases in the run's log.

    Attributes:
        log: The log.
        overlapped: Seconds by phase that are no part of the step's time, because another thread spent them.
    """

    def __init__(self, log: StepLog) -> None:
        super().__init__(log.phase)
        self.log, self.overlapped = log, dict[str, float]()
        self._cpu_began, self._cpu_of_evaluation = time.process_time(), 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.process_time()
        with super().__call__(phase):
            yield
        if phase == "evaluate":
            self._cpu_of_evaluation += time.process_time() - began

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds by phase, CPU seconds, tokens per second and peak memory.

        Args:
            tokens: Response tokens of the step.
        """
        total, phases = sum(self.seconds.values()), self.overlapped | self.seconds
        return {
            **{f"time/{phase}": s for phase, s in phases.items()},
            "time/step": total,
            "time/cpu": time.process_time() - self._cpu_began - self._cpu_of_evaluation,
            "tokens_per_second": tokens / total,
            "tokens_per_second/generate": tokens / phases["generate"],
            "tokens_per_second/update": tokens / phases["update"],
            "memory_gb": peak_memory_gb(),
        }
