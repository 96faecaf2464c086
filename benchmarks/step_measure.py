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
        """Peaks above what there was at the beginning; of a GPU, if one was used, the largest that was allocated."""
        self._on = False
        self.join()
        import torch

        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return {"gpu": torch.cuda.max_memory_allocated() / 2**20}
        return {phase: peak - self.baseline for phase, peak in self.peaks.items()}


def matmul_rate(dtype_name: str, device: str = "cpu", seconds: float = 1.0) -> float:
    """Floating-point operations per second of a square matrix product, the best of those within some seconds."""
    import torch

    dtype, size = getattr(torch, dtype_name), 1536 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
