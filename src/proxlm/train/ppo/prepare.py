"""From a scored rollout to the experience that the update learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOSettings
from proxlm.config.signature import checked
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.corrections import Weights
from proxlm.rl.estimators import Advantages, group_numbers
from proxlm.rl.losses import positive_responses
from proxlm.rl.ragged import row_of_element
from proxlm.rl.shaping import response_rewards
from proxlm.train.ppo.algorithms import Algorithm, build_algorithm
from proxlm.train.ppo.covariant_tokens import covariant_tokens
from proxlm.train.ppo.critic import (
    CriticValues,
    PendingGradient,
    can_learn_while_reading,
    has_own_passes,
    read_values,
)
from proxlm.train.ppo.frozen_states import with_frozen_states
from proxlm.train.ppo.head_shares import factors_of_heads
from proxlm.train.ppo.learner import StepParameters, step_parameters
from proxlm.train.ppo.metrics import Metrics, critic_metrics, experience_metrics, gap_metrics, weight_metrics
from proxlm.train.ppo.off_policy_weights import correction_weights, rollout_log_weights, total_log_weights
from proxlm.train.ppo.plan import MicroBatch, UpdatePlan, plan_update
from proxlm.train.ppo.shaped_rewards import TokenRewards, shaped_rewards
from proxlm.train.ppo.step_advantages import advantage_inputs, first_returns, policy_advantages
from proxlm.train.ppo.token_logprobs import LogProbs, read_logprobs
from proxlm.types import Experience, Progress, Rollout, Scores


@dataclass(frozen=True)
class Prepared:
    """What `update` learns from.

    metrics: the rollout's; plan: that the passes followed, and that the update follows; parameters: of this step;
    first_gradient: the critic's of the first minibatch, where it was taken while values were read.
    """

    experience: Experience
    metrics: Metrics
    plan: UpdatePlan
    parameters: StepParameters
    first_gradient: PendingGradient | None = None


@torch.no_grad()
@checked()
def prepare(
    models: ActorCritic,
    rollout: Rollout,
    scores: Scores,
    config: PPOConfig,
    step: int = 0,
    *,
    plan: UpdatePlan | None = None,
    parameters: StepParameters | None = None,
    algorithm: Algorithm | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Log-probs → KL → shaped rewards of tokens → values → advantages → whitening.

    The passes are those of the plan's first epoch. Running the same forward passes here and in the update makes the
    ratio of the first minibatch exactly 1 in float32. With `ppo.old_logprobs` = "rollout" the policy makes no pass
    here, and the entropy is that of the sampled tokens, −log π, whose mean it is. On out-of-memory the passes run
    again in smaller micro-batches, and the update follows.

    Args:
        models: The networks, as they were when the rollout was sampled.
        rollout: The responses.
        scores: What they are worth.
        config: `ppo`, `shaping` and `rollout.max_new_tokens` are used.
        step: The PPO step, from 0, if there is no plan; schedules and the order of rows follow it.
        plan: Of the update; None: a new one.
        parameters: Of this step; None: as the settings have them for this step.
        algorithm: The advantage and the loss; None: those that the settings name.
        on_progress: Called with (done, total) passes.

    Raises:
        RunError: Where a single sequence is too much for the memory.
    """
    plan = plan or plan_update(rollout, config, step)
    rollout = with_frozen_states(models, rollout, plan)
    parameters = parameters or step_parameters(config, plan.step)
    algorithm, ppo, mask = algorithm or build_algorithm(config.ppo), config.ppo, rollout.action_mask
    if models.value_head is not None and models.value_head.waits:
        models.value_head.begin(first_returns(rollout, scores, config, parameters, algorithm))
    head_factors = factors_of_heads(models, rollout, config.model.value.head_share, plan.seed, plan.step)

    def estimate(part: Rollout, rewards: Tensor, critic: CriticValues, log_weights: Weights) -> Advantages:
        total = total_log_weights(log_weights, ppo)
        return algorithm.advantage(
            advantage_inputs(part, rewards, critic, ppo, parameters.critic_only, total)
        )

    def passes() -> tuple[LogProbs, TokenRewards, CriticValues]:
        count = _PassCount(models, ppo, plan, on_progress)
        logprobs = read_logprobs(models, rollout, plan, ppo, parameters.temperature, count.one)
        rewards = shaped_rewards(rollout, scores, logprobs, config, parameters)
        if not has_own_passes(models, ppo):
            return logprobs, rewards, logprobs.values

        def returns_of(micro: MicroBatch, values: Tensor, final_values: Tensor) -> Tensor:
            part, at = rollout.select(micro.rows), micro.tokens
            log_weights = rollout_log_weights(part, logprobs.policy[at], plan.step)
            return estimate(
                part, rewards.rewards[at], CriticValues(values, final_values), log_weights
            ).returns

        learn = returns_of if can_learn_while_reading(models, ppo, algorithm) else None
        critic = read_values(models, rollout.sequences, plan, ppo, learn, head_factors, count.one)
        return logprobs, rewards, critic

    logprobs, rewards, critic = plan.within_memory(passes)
    log_weights = rollout_log_weights(rollout, logprobs.policy, plan.step)
    weights = correction_weights(rollout, log_weights, ppo)
    estimated = estimate(rollout, rewards.rewards, critic, log_weights)
    raw, advantages = policy_advantages(
        estimated.advantages, rollout, logprobs, ppo, parameters.kl_coef, algorithm.whiten
    )
    apart = covariant_tokens(rollout, logprobs.policy, advantages, ppo, plan.seed, plan.step)
    experience = Experience(
        sequences=rollout.sequences,
        action_mask=mask,
        old_logprobs=logprobs.policy,
        ref_logprobs=logprobs.reference,
        values=critic.values,
        rewards=rewards.rewards,
        advantages=advantages,
        returns=estimated.returns,
        correction=weights.engine * weights.staleness,
        sampling_mask=rollout.sampling_mask,
        covariant=apart and apart[0],
        positive=positive_tokens(rollout, scores, ppo),
        values_of_heads=critic.of_heads,
        head_factors=head_factors,
        teacher_logprobs=logprobs.teacher,
    )

    def metrics() -> Metrics:
        found = experience_metrics(experience, rollout, scores, rewards.scores, raw, logprobs.entropy)
        if experience.positive is not None:
            found["positive_share"] = float(experience.positive[mask].double().mean())
        if models.value_head is not None:
            found |= critic_metrics(experience, raw, models.value_head.bins)
        found |= weight_metrics(rollout, log_weights, weights, ppo) | (apart[1] if apart else {})
        return found if ppo.old_logprobs == "rollout" else found | gap_metrics(experience, rollout)

    # β and the entropy bonus follow them, so all ranks take the numbers of one.
    return Prepared(experience, plan.ranks.broadcast(metrics), plan, parameters, critic.first_gradient)


def positive_tokens(rollout: Rollout, scores: Scores, ppo: PPOSettings) -> Tensor | None:
    """The chosen tokens [R] bool of positive responses, by their rewards before shaping; None without that loss."""
    if ppo.positive_coef == 0:
        return None
    offsets = rollout.sequences.response_offsets
    rewards = response_rewards(scores.total, scores.per_token, offsets)
    groups = group_numbers(torch.tensor([p.id for p in rollout.prompts]))
    positive = positive_responses(rewards, groups, ppo.positive, ppo.positive_threshold)
    return positive[row_of_element(offsets)] & rollout.action_mask


class _PassCount:
    """Reports how many of this rank's micro-batches have been read, by policy and critic together."""

    def __init__(
        self, models: ActorCritic, ppo: PPOSettings, plan: UpdatePlan, on_progress: Progress | None
    ) -> None:
        micro_batches = sum(len(minibatch.micro_batches) for minibatch in plan.epoch(0))
        self.done, self.total = 0, micro_batches * (2 if has_own_passes(models, ppo) else 1)
        self.on_progress = on_progress

    def one(self) -> None:
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)
