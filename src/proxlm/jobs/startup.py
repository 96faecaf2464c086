"""What a command does to its process first, and the seed of a run's new weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from proxlm.checkpoint import checkpoints
from proxlm.config import (
    DistillConfig,
    DPOConfig,
    ModelSettings,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
    ValueConfig,
)
from proxlm.distributed.environment import rank, restarts
from proxlm.errors import ConfigError
from proxlm.kernels.device import lacks_bfloat16
from proxlm.kernels.startup import start
from proxlm.seeds import Purpose, derive_seed

C = TypeVar("C", PPOConfig, ValueConfig, PretrainConfig, SFTConfig, RewardConfig, DPOConfig, DistillConfig)


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


def after_restart(config: C) -> C:
    """The settings of a run that torchrun has started again: it goes on from its newest checkpoint.

    Without one it starts from the beginning, and rank 0 renames the folder of the failed start.

    Raises:
        ConfigError: The run has no folder of its own that could be found again.
    """
    if not restarts() or config.run.resume:
        return config
    if not config.run.folder:
        raise ConfigError("run.folder: not set, so the run that has failed cannot be found again; set it")
    folder = Path(config.run.folder)
    if checkpoints(folder):
        return replace(config, run=replace(config.run, resume=True))
    if rank() == 0 and folder.exists():
        aside = folder.with_name(f"{folder.name}-failed-{restarts()}")
        folder.rename(aside)
        print(f"note: no step was saved before the restart; what there was is in {aside}", flush=True)
    return config
