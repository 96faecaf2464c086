"""Memory by phase and the machine's own rate, for the benchmarks of a PPO step. Linux."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class PeakMemory(threading.Thread):
    """The largest resident memory of each phase in MiB, looked at every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phase, self.peaks, self._on = "begin", dict[str, float](), True
        self.baseline = resident_mb()
        self.start()

    def run(self) -> None:
        while self._on:
            phase = self.phase
            self.peaks[phase] = max(self.peaks.get(phase, 0.0), resident_mb())
            time.sleep(0.005)

    def stop(self) -> dict[str, float]:
        """Peaks above what there was at the beginning."""
        self._on = False
        self.join()
        return {phase: peak - self.baseline for phase, peak in self.peaks.items()}


def matmul_rate(dtype_name: str, size: int = 1536, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a square matrix product, the best of those within some seconds."""
    import torch

    dtype = getattr(torch, dtype_name)
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
