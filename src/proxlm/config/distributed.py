"""How several processes train together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from proxlm.config.optimiser import OptimiserSettings
from proxlm.config.problems import Problems
from proxlm.config.setting import setting


@dataclass(frozen=True)
class DistributedSettings:
    """Several processes that train together, started by torchrun or `proxlm launch`."""

    strategy: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "what each process holds: all weights (ddp), or a share of the weights, gradients and moments of the blocks"
        " that learn, besides a whole copy that samples and is saved (fsdp: torch's fully_shard)",
        on_resume="free",
    )
    timeout: float = setting(
        60.0,
        "minutes that a process waits for the others, for rank 0's reward for instance, before the run ends with an"
        " error",
        gt=0,
        on_resume="free",
    )

    def shards(self, size: int) -> bool:
        """Whether so many processes spread weights."""
        return size > 1 and self.strategy == "fsdp"


def sharding_problems(
    distributed: DistributedSettings, optimisers: Mapping[str, OptimiserSettings], **unfit: object
) -> Problems:
    """What sharded weights cannot be used for.

    Args:
        distributed: The section.
        optimisers: The sections of the optimisers, by their keys.
        unfit: More settings, with __ for a dot, and whether they are in use.
    """
    if distributed.strategy == "ddp":
        return []
    used = {name.replace("__", "."): value for name, value in unfit.items()}
    for key, optim in optimisers.items():  # they need whole matrices
        used[f"{key}.name"] = optim.name in ("muon", "lbfgs", "adafactor")
    return [
        (key, "not with distributed.strategy = fsdp; set that to ddp") for key, value in used.items() if value
    ]
