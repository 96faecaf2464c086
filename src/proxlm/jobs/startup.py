"""What every job with a language model does first."""

from __future__ import annotations

from proxlm.config import ModelSettings
from proxlm.kernels.device import lacks_bfloat16
from proxlm.kernels.startup import start
from proxlm.seeds import Purpose, derive_seed


def set_up(seed: int, threads: int = 0, model: ModelSettings | None = None) -> None:
    """Set up the process (`kernels/startup.py`): seed torch, set the number of threads, and silence transformers.

    Prints a note if the device has no instructions for the model's precision.

    Args:
        seed: The run's seed; new weights are drawn from it.
        threads: CPU threads; 0: one per core.
        model: Whose precision and device are compared; None: no note.
    """
    start(derive_seed(seed, Purpose.WEIGHTS), threads)
    if model is not None and model.precision == "bfloat16" and lacks_bfloat16(model.device):
        print(
            "note: model.precision = bfloat16, but this device has no instructions for it: torch emulates it, far"
            " slower than float32; auto takes float32 here",
            flush=True,
        )
