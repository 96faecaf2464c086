"""Rewards and values of a batch → what the policy and the critic learn from."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOSettings
from proxlm.rl.advantages import kl_advantages, length_adaptive_lambda, whiten
from proxlm.rl.estimators import AdvantageInputs, group_numbers
from proxlm.rl.kl import kl_estimate
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import clip_advantages
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.critic import CriticValues, no_values
from proxlm.train.ppo.learner import StepParameters
from proxlm.train.ppo.shaped_rewards import shaped_rewards
from proxlm.train.ppo.token_logprobs import LogProbs
from proxlm.types import Rollout, Scores


def advantage_inputs(
    rollout: Rollout,
    rewards: Tensor,
    critic: CriticValues,
    ppo: PPOSettings,
    critic_only: bool = False,
    log_weights: Tensor | None = None,
) -> AdvantageInputs:
    """What an advantage estimator gets for these responses.

    Args:
        rollout: The responses, all of a batch or some.
        rewards: Of their tokens [R].
        critic: Their values.
        ppo: The settings.
        critic_only: In the critic's warm-up its targets are Monte-Carlo returns.
        log_weights: log π_old − log π_roll of their tokens [R]; None: zeros.
    """
    offsets = rollout.sequences.response_offsets
    lam: float | Tensor = ppo.lam
    if ppo.lam_length > 0:
        lam = length_adaptive_lambda(segment_sum(rollout.action_mask.float(), offsets), ppo.lam_length)
    critic_lam = ppo.critic_lam if ppo.critic_lam >= 0 else None
    bootstrap = torch.where(rollout.ended, 0.0, critic.final_values)
    return AdvantageInputs(
        rewards=rewards,
        values=critic.values,
        action_mask=rollout.action_mask,
        offsets=offsets,
        groups=group_numbers(torch.tensor([p.id for p in rollout.prompts])),
        bootstrap=bootstrap if ppo.truncation == "bootstrap" else None,
        gamma=ppo.gamma,
        lam=lam,
        critic_lam=1.0 if critic_only else critic_lam,
        turns=ppo.gae_steps == "turn",
        group_std=ppo.group_std,
        log_weights=log_weights,
        trace_rho=ppo.trace_rho,
        trace_c=ppo.trace_c,
    )


def policy_advantages(
    advantages: Tensor, rollout: Rollout, logprobs: LogProbs, ppo: PPOSettings, kl_coef: float, whitened: bool
) -> tuple[Tensor, Tensor]:
    """The estimator's advantages with the KL terms that belong in them [R], and what the policy learns from [R].

    Args:
        advantages: The estimator's [R].
        rollout: The responses.
        logprobs: Of their tokens.
        ppo: `kl_in` = "advantage" adds the KL to the reference; with a teacher the KL to it is added, too.
        kl_coef: β of this step.
        whitened: Whether the policy's are whitened, before `ppo.advantage_clip` bounds them.
    """
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets
    if ppo.kl_in == "advantage":
        kl = kl_estimate(logprobs.policy, logprobs.reference, ppo.kl_estimator, ppo.max_log_ratio)
        advantages = advantages + kl_advantages(kl, kl_coef, mask, offsets, ppo.gamma, ppo.kl_lam)
    if logprobs.teacher is not None:
        # Always k1: of the estimators it alone, as an advantage, has the gradient of the KL.
        kl = logprobs.policy - logprobs.teacher
        advantages = advantages + kl_advantages(
            kl, ppo.teacher_coef, mask, offsets, ppo.gamma, ppo.teacher_lam
        )
    found = whiten(advantages, mask) if whitened else advantages
    return advantages, clip_advantages(found, ppo.advantage_clip)


def first_returns(
    rollout: Rollout, scores: Scores, config: PPOConfig, parameters: StepParameters, algorithm: Algorithm
) -> Tensor:
    """What the critic is to predict at the chosen tokens, with V = 0, λ = 1 and no KL yet."""
    known, no_critic = rollout.logprobs, no_values(None, len(rollout), len(rollout.logprobs))
    rewards = shaped_rewards(rollout, scores, LogProbs(known, known, -known, no_critic), config, parameters)
    inputs = advantage_inputs(rollout, rewards.rewards, no_critic, config.ppo, critic_only=True)
    return algorithm.advantage(inputs).returns[rollout.action_mask]
