"""What a CUDA graph does, on a CPU: the operations of one pass with their tensors, repeated on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They hand Python a number of the device, for which a recording cannot wait; or shapes that depend on numbers.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in READS):
            raise AssertionError(f"{func}: the recorded pass reads a number of the device")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A `Capture`: Python's part of the pass runs once, and whatever it computed stays as it was."""
    run()  # a warm-up prepares weights
    with _Recorder() as recorder:
        result = run()

    def replay() -> Tensor:
        for func, args, kwargs, outputs in recorder.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)
        return result

    return replay
