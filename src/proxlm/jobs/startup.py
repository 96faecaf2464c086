"""What a command does to its process first, and the seed of a run's new weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from proxlm.config import ModelSettings
from proxlm.kernels.device import lacks_bfloat16
from proxlm.kernels.startup import start
from proxlm.seeds import Purpose, derive_seed


def start_job(threads: int = 0, model: ModelSettings | None = None) -> None:
    """Set up the process of a command (`kernels/startup.py`). Trainers do without it, and leave the process as it is.

    Prints a note if the device has no instructions for the model's precision.

    Args:
        threads: CPU threads; 0: one per core.
        model: Whose precision and device are compared; None: no note.
    """
    start(threads)
    if model is not None and model.precision == "bfloat16" and lacks_bfloat16(model.device):
        print(
            "note: model.precision = bfloat16, but this device has no instructions for it: torch emulates it, far"
            " slower than float32; auto takes float32 here",
            flush=True,
        )


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """New weights that are made inside follow the run's seed; torch's global generators are left as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, Purpose.WEIGHTS))
        yield
