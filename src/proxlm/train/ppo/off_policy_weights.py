"""Weights of tokens that another policy sampled than the update starts from: an engine's, or an older one."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.rl.corrections import Weights, importance_weights, split_log_weights
from proxlm.types import Rollout


def rollout_log_weights(rollout: Rollout, old_logprobs: Tensor, step: int) -> Weights:
    """log π_old − log π_roll of each token [R] in two parts: the engine's, and that of updates since; 0 elsewhere.

    Args:
        rollout: The responses.
        old_logprobs: The policy's, before the update [R].
        step: The PPO step, from 0: the present version.
    """
    stale = rollout.policy_versions != step
    found = split_log_weights(old_logprobs, rollout.logprobs, rollout.trainer_logprobs, stale)
    return Weights(*(torch.where(rollout.action_mask, part, 0.0) for part in found))


def total_log_weights(log_weights: Weights, ppo: PPOSettings) -> Tensor:
    """log π_old − log π_roll of each token [R], clamped so that its exponential is finite."""
    return (log_weights.engine + log_weights.staleness).clamp(-ppo.max_log_ratio, ppo.max_log_ratio)


def correction_weights(rollout: Rollout, log_weights: Weights, ppo: PPOSettings) -> Weights:
    """The factors of each token's policy loss where another policy sampled than the update starts from."""
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets

    def weights(logs: Tensor, correction: CorrectionSettings) -> Tensor:
        return importance_weights(logs, mask, offsets, correction.mode, *correction.bounds, ppo.max_log_ratio)

    return Weights(
        weights(log_weights.engine, ppo.engine_correction),
        weights(log_weights.staleness, ppo.staleness_correction),
    )
