"""Scores of responses → the reward of each token."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.rl.advantages import whiten
from proxlm.rl.kl import kl_estimate
from proxlm.rl.shaping import token_rewards
from proxlm.train.ppo.learner import StepParameters
from proxlm.train.ppo.score_shaping import shape_scores
from proxlm.train.ppo.token_logprobs import LogProbs
from proxlm.types import Rollout, Scores


class TokenRewards(NamedTuple):
    """rewards [R]: KL penalty and score included; scores [B]: shaped scores of the responses, a part of them."""

    rewards: Tensor
    scores: Tensor


def shaped_rewards(
    rollout: Rollout, scores: Scores, logprobs: LogProbs, config: PPOConfig, parameters: StepParameters
) -> TokenRewards:
    """The reward of each token: shaped scores, per-token rewards, −β KL, whitened if the settings say so."""
    ppo, mask, offsets = config.ppo, rollout.action_mask, rollout.sequences.response_offsets
    shaped = shape_scores(
        rollout,
        scores,
        config.shaping,
        parameters.score_statistics,
        limit=config.rollout.max_new_tokens,
        gamma=ppo.gamma,
        bootstrap=ppo.truncation == "bootstrap",
    )
    kl = kl_estimate(logprobs.policy, logprobs.reference, ppo.kl_estimator, ppo.max_log_ratio)
    kl_coef = parameters.kl_coef if ppo.kl_in == "reward" else 0.0
    rewards = token_rewards(shaped.total, kl, kl_coef, mask, offsets, shaped.per_token)
    if config.shaping.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    return TokenRewards(rewards, shaped.total)
