"""How several processes train together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.problems import Problems
from proxlm.config.setting import setting


@dataclass(frozen=True)
class DistributedSettings:
    """Several processes that train together, started by torchrun or `proxlm launch`."""

    strategy: Literal["ddp", "fsdp"] = setting(
        "ddp",
        "what each process holds: all weights (ddp), or a share of the weights, gradients and moments of the blocks"
        " that learn, besides a whole copy of the policy that samples (fsdp: torch's fully_shard)",
        on_resume="free",
    )
    timeout: float = setting(
        60.0,
        "minutes that a process waits for the others, for rank 0's reward for instance, before the run ends with an"
        " error",
        gt=0,
        on_resume="free",
    )

    def unsharded_problems(self) -> Problems:
        """Of a job whose processes all hold whole weights."""
        if self.strategy == "ddp":
            return []
        return [("distributed.strategy", "sharded weights are for proxlm ppo; set it to ddp")]
