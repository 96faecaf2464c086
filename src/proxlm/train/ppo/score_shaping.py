"""From a reward function's scores to those that are learned from: scaling, clipping, length penalties, potentials."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import ShapingSettings
from proxlm.errors import ConfigError
from proxlm.rl.estimators import group_numbers
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import RunningStatistics, scale_scores
from proxlm.rl.shaping import apply_missing_eos, normalised_sum, overlong_penalty, potential_rewards
from proxlm.types import Rollout, Scores


@dataclass(frozen=True)
class ShapedScores:
    """total [B]: given on each response's last token; per_token [R] or None: given on single tokens besides."""

    total: Tensor
    per_token: Tensor | None


def shape_scores(
    rollout: Rollout,
    scores: Scores,
    config: ShapingSettings,
    statistics: RunningStatistics,
    limit: int,
    gamma: float,
    bootstrap: bool,
) -> ShapedScores:
    """Normalise, scale and clip, then subtract penalties for a missing end and for length, then add potentials.

    Args:
        rollout: The responses.
        scores: What they are worth.
        config: The settings.
        statistics: Mean and standard deviation that scores are scaled by.
        limit: The longest response in tokens.
        gamma: Discount factor, for potentials.
        bootstrap: Whether the return of a response cut at the limit goes on with the critic's value.
    """
    offsets = rollout.sequences.response_offsets
    total, per_token = _normalised(rollout, scores, config.normalise), scores.per_token
    if config.scale != "none" or config.clip > 0:
        sums = torch.zeros_like(total) if per_token is None else segment_sum(per_token, offsets)
        by = statistics if config.scale != "none" else RunningStatistics()
        total, per_token = scale_scores(total, per_token, sums, by, config.clip)
    total = apply_missing_eos(total, rollout.ended, config.missing_eos, config.missing_eos_penalty)
    lengths = segment_sum(rollout.action_mask.float(), offsets)
    total = total - overlong_penalty(lengths, limit, config.overlong_buffer, config.overlong_penalty)
    if scores.potentials is not None:
        hints = potential_rewards(
            scores.potentials, rollout.action_mask, offsets, gamma, ~rollout.ended if bootstrap else None
        )
        per_token = hints if per_token is None else per_token + hints
    return ShapedScores(total, per_token)


def _normalised(rollout: Rollout, scores: Scores, by: str) -> Tensor:
    """The total scores [B], each reward normalised before it is weighted if the settings say so.

    Raises:
        ConfigError: There are no named rewards to normalise.
    """
    if by == "none":
        return scores.total
    if not scores.weights:
        raise ConfigError(
            f'shaping.normalise = "{by}": the reward has no components for whole responses; name them in reward.terms'
        )
    # In float64: the mean of equal values is off by a rounding in float32.
    components = torch.tensor([scores.components[name] for name in scores.weights], dtype=torch.float64)
    weights = torch.tensor(list(scores.weights.values()), dtype=torch.float64)
    ids = torch.tensor([prompt.id for prompt in rollout.prompts])
    groups = group_numbers(ids) if by == "group" else torch.zeros_like(ids)
    return normalised_sum(components, weights, groups).to(scores.total.dtype)
