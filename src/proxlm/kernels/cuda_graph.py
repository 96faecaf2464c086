"""CUDA graphs: the kernels of a pass recorded once, and repeated without Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From a pass without arguments to one that repeats its kernels on the same memory.
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
# How often a pass runs before it is recorded, which is when libraries choose their algorithms and take their memory.
WARM_UP = 2


class CudaGraphs:
    """Captures passes that share one pool of memory, so that their results are overwritten by one another.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record a pass.

        Args:
            run: its shapes, addresses and Python values are those of every later pass; it reads no number of the
                device.

        Returns:
            What repeats it. Its result lies in the same memory each time.
        """
        # A weight that autocast has kept a copy of may be gone when the graph reads it, so it keeps none here.
        kind = self._device.type
        with torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        ):
            side = torch.cuda.Stream(self._device)
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may use the device meanwhile: with ppo.max_staleness one learns beside this one.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
