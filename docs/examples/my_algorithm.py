"""An advantage estimator and a policy loss of one's own: pure functions, explained in docs/algorithms.md."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.rl.estimators import AdvantageInputs, Advantages, rloo_advantages
from proxlm.rl.policy_losses import LossInputs, log_ratio


def positive_rloo(inputs: AdvantageInputs) -> Advantages:
    """A = max(0, R − mean R of the prompt's other responses): learn from the better ones, ignore the rest."""
    advantages, returns = rloo_advantages(inputs)
    return Advantages(advantages.clamp(min=0.0), returns)


def soft_clip(inputs: LossInputs) -> Tensor:
    """−A (1 + ε tanh((ρ − 1) / ε)) where ρ moves the way A points, else −ρ A; ε is clip_low or clip_high.

    The slope is PPO's at ρ = 1 and fades with sech² instead of falling to 0 at a bound. [R]
    """
    if min(inputs.clip_low, inputs.clip_high) <= 0:
        raise ValueError("soft_clip needs ppo.clip_low and ppo.clip_high above 0")
    moved = log_ratio(inputs).exp() - 1.0
    epsilon = torch.where(moved > 0, inputs.clip_high, inputs.clip_low)
    gain = torch.where(moved * inputs.advantages > 0, epsilon * torch.tanh(moved / epsilon), moved)
    return -inputs.advantages * (1.0 + gain)
