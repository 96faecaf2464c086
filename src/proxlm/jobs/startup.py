"""What every job with a language model does first."""

from __future__ import annotations

import torch

from proxlm.config import ModelSettings
from proxlm.kernels.allocator import keep_freed_memory
from proxlm.kernels.device import can_widen, lacks_bfloat16, resolve_device
from proxlm.seeds import Purpose, derive_seed


def set_up(seed: int, threads: int = 0, model: ModelSettings | None = None) -> None:
    """Seed torch, set the number of threads, and silence transformers.

    Prints a note if the device has no instructions for the model's precision.

    Args:
        seed: The run's seed; new weights are drawn from it.
        threads: CPU threads; 0: one per core.
        model: Whose precision and device are compared; None: no note.
    """
    from transformers.utils import logging

    torch.manual_seed(derive_seed(seed, Purpose.WEIGHTS))
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if model is not None and model.precision == "bfloat16" and lacks_bfloat16(model.device):
        how = (
            "multiplies in float32 and rounds to bfloat16, which takes less memory but no less time than float32"
            if resolve_device(model.device).type == "cpu" and can_widen()
            else "emulates it, far slower than float32"
        )
        print(
            f"note: model.precision = bfloat16, but this device has no instructions for it: it {how};"
            " auto takes what is there",
            flush=True,
        )
