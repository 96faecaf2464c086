"""Weights for rollouts sampled by another policy than the one whose log-probs the update starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.rl.ragged import row_of_element, segment_sum


def rollout_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    mode: str,
    level: str = "token",
    cap: float = 2.0,
    low: float = 0.5,
    high: float = 5.0,
    max_log_ratio: float = 20.0,
) -> Tensor:
    """w = π_old / π_rollout, a factor of each token's policy loss, never with gradient.

    mode "none": 1. "full": w, the decoupled objective of stale rollouts, π_old / π_behaviour · min(ρ A, clip(ρ) A)
    (Hilton et al. 2021; Fu et al. 2025, AReaL, equation 5). "truncate": min(w, cap) (Yao et al. 2025, truncated
    importance sampling). "mask": w where low ≤ w ≤ high, else 0 (IcePop, 2025).

    level "token": of that token alone; low variance, but the states are still those of the other policy.
    level "sequence": the product over the response's chosen tokens; with "full" unbiased.

    Args:
        old_logprobs: log π_old of the tokens [R].
        rollout_logprobs: log π_rollout, which sampled them [R].
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        mode: "none", "full", "truncate" or "mask".
        level: "token" or "sequence".
        cap: The largest weight of "truncate".
        low: The smallest weight that "mask" keeps.
        high: The largest weight that "mask" keeps.
        max_log_ratio: Log-ratios are clamped to ± this before exp.

    Returns:
        Weights [R], 1 where the policy did not choose.
    """
    if not old_logprobs.shape == rollout_logprobs.shape == action_mask.shape:
        raise ValueError(
            f"shapes differ: {tuple(old_logprobs.shape)}, {tuple(rollout_logprobs.shape)}, {tuple(action_mask.shape)}"
        )
    if mode == "none":
        return torch.ones_like(old_logprobs)
    logs = torch.where(action_mask, old_logprobs - rollout_logprobs, 0.0).detach()
    if level == "sequence":
        logs = segment_sum(logs, offsets)[row_of_element(offsets)]
    elif level != "token":
        raise ValueError(f'level must be "token" or "sequence", got "{level}"')
    weights = torch.exp(logs.clamp(-max_log_ratio, max_log_ratio))
    if mode == "truncate":
        weights = weights.clamp(max=cap)
    elif mode == "mask":
        weights = torch.where((weights >= low) & (weights <= high), weights, 0.0)
    elif mode != "full":
        raise ValueError(f'mode must be "none", "full", "truncate" or "mask", got "{mode}"')
    return torch.where(action_mask, weights, 1.0)
