"""Everything proxlm changes for the whole process, in one place.

The jobs of the command line call `start` once, before they build anything. Constructors and functions of the library
never do: code that builds models and trainers from Python gets none of it unless it calls `start`.

Two things outside this file touch process-wide state, and neither changes what torch computes afterwards: loading a
model registers proxlm's model types with the Auto classes of transformers (`models/model_types.py`), and an LSTM's
forward pass switches oneDNN and cuDNN off for its duration (`models/lstm.py`).
"""

from __future__ import annotations

import torch

from proxlm.kernels.allocator import keep_freed_memory


def start(threads: int = 0, quiet_transformers: bool = True, keep_memory: bool = True) -> list[str]:
    """Set up this process for a job.

    Args:
        threads: CPU threads of torch's operations; 0 leaves torch's own choice, one per core.
        quiet_transformers: Turns off the progress bars of transformers and its messages below errors.
        keep_memory: Lets the C library keep freed memory (`allocator.py`), where it can.

    Returns:
        What was changed, one short phrase each.
    """
    changed = []
    if threads:
        torch.set_num_threads(threads)
        changed.append(f"torch uses {threads} CPU threads")
    if quiet_transformers:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        changed.append("transformers shows no progress bars and errors only")
    if keep_memory and keep_freed_memory():
        changed.append("the C library keeps freed memory")
    return changed
