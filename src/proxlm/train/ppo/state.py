"""What a PPO run carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from proxlm.rl.running_statistics import RunningStatistics
from proxlm.train.common.run_loop import LoopState


@dataclass(kw_only=True)
class PPOState(LoopState):
    """What a run carries from one step to the next, besides weights and optimisers.

    Attributes:
        kl_coef: β, the coefficient of the KL penalty.
        draws: Batches of prompts taken (more than steps if prompts are filtered).
        score_statistics: Mean and deviation of the scores, for `shaping.scale`.
        ptx_batches: Batches of text used.
        lowered_budget: The most tokens in a pass, if out-of-memory has lowered it; else 0.
    """

    kl_coef: float
    draws: int = 0
    score_statistics: RunningStatistics = RunningStatistics()  # noqa: RUF009 (immutable)
    ptx_batches: int = 0
    lowered_budget: int = 0

    def problem(self) -> str:
        if self.kl_coef < 0:
            return f"kl_coef = {self.kl_coef:g}, where β is at least 0"
        if self.draws < self.step:
            return f"draws = {self.draws}, fewer than the {self.step} steps, each of which draws prompts"
        return super().problem()
