"""From a scored rollout to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOSettings
from proxlm.config.ppo import CorrectionSettings
from proxlm.config.signature import checked
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.advantages import kl_advantages, length_adaptive_lambda, whiten
from proxlm.rl.corrections import Weights, importance_weights, split_log_weights
from proxlm.rl.estimators import AdvantageInputs, group_numbers
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import positive_responses
from proxlm.rl.ragged import row_of_element, segment_sum
from proxlm.rl.running_statistics import clip_advantages
from proxlm.rl.shaping import response_rewards, token_rewards
from proxlm.train.common.memory import failing_together
from proxlm.train.ppo.algorithms import Algorithm, build_algorithm
from proxlm.train.ppo.covariant_tokens import covariant_tokens
from proxlm.train.ppo.critic import (
    CriticValues,
    PendingGradient,
    can_learn_while_reading,
    fill_values,
    has_own_passes,
    no_values,
    read_values,
)
from proxlm.train.ppo.frozen_states import with_frozen_states
from proxlm.train.ppo.head_shares import factors_of_heads
from proxlm.train.ppo.learner import StepParameters, step_parameters
from proxlm.train.ppo.metrics import Metrics, critic_metrics, experience_metrics, gap_metrics, weight_metrics
from proxlm.train.ppo.plan import MicroBatch, UpdatePlan, plan_update
from proxlm.train.ppo.score_shaping import shape_scores
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

    def passes() -> tuple[LogProbs, TokenRewards, CriticValues]:
        count = _PassCount(models, ppo, plan, on_progress)
        logprobs = read_logprobs(models, rollout, plan, ppo, parameters.temperature, count.one)
        rewards = shaped_rewards(rollout, scores, logprobs, config, parameters)
        if not has_own_passes(models, ppo):
            return logprobs, rewards, logprobs.values

        def returns_of(micro: MicroBatch, values: Tensor, final_values: Tensor) -> Tensor:
            part, found = rollout.select(micro.rows), CriticValues(values, final_values)
            inputs = advantage_inputs(
                part,
                rewards.rewards[micro.tokens],
                found,
                ppo,
                parameters.critic_only,
                total_log_weights(rollout_log_weights(part, logprobs.policy[micro.tokens], plan.step), ppo),
            )
            return algorithm.advantage(inputs).returns

        learn = returns_of if can_learn_while_reading(models, ppo, algorithm) else None
        critic = read_values(models, rollout.sequences, plan, ppo, learn, head_factors, count.one)
        return logprobs, rewards, critic

    logprobs, rewards, critic = plan.within_memory(passes)
    log_weights = rollout_log_weights(rollout, logprobs.policy, plan.step)
    weights = correction_weights(rollout, log_weights, ppo)
    inputs = advantage_inputs(
        rollout,
        rewards.rewards,
        critic,
        ppo,
        parameters.critic_only,
        total_log_weights(log_weights, ppo),
    )
    raw = algorithm.advantage(inputs)
    if ppo.kl_in == "advantage":
        kl = kl_estimate(logprobs.policy, logprobs.reference, ppo.kl_estimator, ppo.max_log_ratio)
        offsets = rollout.sequences.response_offsets
        penalty = kl_advantages(kl, parameters.kl_coef, mask, offsets, ppo.gamma, ppo.kl_lam)
        raw = raw._replace(advantages=raw.advantages + penalty)
    if logprobs.teacher is not None:
        # Always k1: of the estimators it alone, as an advantage, has the gradient of the KL.
        kl, offsets = logprobs.policy - logprobs.teacher, rollout.sequences.response_offsets
        distilled = kl_advantages(kl, ppo.teacher_coef, mask, offsets, ppo.gamma, ppo.teacher_lam)
        raw = raw._replace(advantages=raw.advantages + distilled)
    advantages = whiten(raw.advantages, mask) if algorithm.whiten else raw.advantages
    advantages = clip_advantages(advantages, ppo.advantage_clip)
    apart = covariant_tokens(rollout, logprobs.policy, advantages, ppo, plan.seed, plan.step)
    experience = Experience(
        sequences=rollout.sequences,
        action_mask=mask,
        old_logprobs=logprobs.policy,
        ref_logprobs=logprobs.reference,
        values=critic.values,
        rewards=rewards.rewards,
        advantages=advantages,
        returns=raw.returns,
        correction=weights.engine * weights.staleness,
        sampling_mask=rollout.sampling_mask,
        covariant=apart and apart[0],
        positive=positive_tokens(rollout, scores, ppo),
        values_of_heads=critic.of_heads,
        head_factors=head_factors,
        teacher_logprobs=logprobs.teacher,
    )

    def metrics() -> Metrics:
        found = experience_metrics(
            experience,
            rollout,
            scores,
            rewards.scores,
            raw.advantages,
            logprobs.entropy,
        )
        if experience.positive is not None:
            found["positive_share"] = float(experience.positive[mask].double().mean())
        if models.value_head is not None:
            found |= critic_metrics(experience, raw.advantages, models.value_head.bins)
        found |= weight_metrics(rollout, log_weights, weights, ppo) | (apart[1] if apart else {})
        return found if ppo.old_logprobs == "rollout" else found | gap_metrics(experience, rollout)

    # β and the entropy bonus follow them, so all ranks take the numbers of one.
    return Prepared(experience, plan.ranks.broadcast(metrics), plan, parameters, critic.first_gradient)


class LogProbs(NamedTuple):
    """policy, reference, entropy [R] float32: log π of the tokens under both, and the policy's entropy; with
    a sampling mask, of the policy that sampled: renormalised over the kept sets.

    values: of a trunk that policy and critic share; 0 if they do not, or where the policy makes no pass.
    teacher [R] float32: log π of the tokens under the teacher; None: there is none.
    """

    policy: Tensor
    reference: Tensor
    entropy: Tensor
    values: CriticValues
    teacher: Tensor | None = None


def read_logprobs(
    models: ActorCritic,
    rollout: Rollout,
    plan: UpdatePlan,
    ppo: PPOSettings,
    temperature: float,
    on_pass: Callable[[], None] = lambda: None,
) -> LogProbs:
    """The passes of policy, reference and teacher over the update's first epoch.

    Args:
        models: The networks.
        rollout: The responses.
        plan: Of the update.
        ppo: With `old_logprobs` = "rollout" the policy makes no pass.
        temperature: Of the policy, of the reference and of the teacher.
        on_pass: Called after each micro-batch.
    """
    sequences, device, known = rollout.sequences, models.policy.device, ppo.old_logprobs == "rollout"
    policy, reference, entropy, teacher = (torch.zeros(len(rollout.logprobs)) for _ in range(4))
    values = no_values(models, len(rollout), len(rollout.logprobs))

    def passes() -> None:
        for micro in (micro for minibatch in plan.epoch(0) for micro in minibatch.micro_batches):
            part, at = sequences.select(micro.rows).to(device), micro.tokens
            mask = None if rollout.sampling_mask is None else rollout.sampling_mask.select(at)
            if not known:
                outputs = models.policy_outputs(part, temperature, entropy=True, mask=mask)
                assert outputs.entropy is not None
                if models.shared:
                    fill_values(values, models, micro, outputs.states, outputs.final_states)
                if not micro.padding:
                    policy[at], entropy[at] = outputs.logprobs.cpu(), outputs.entropy.cpu()
            of_others = mask if ppo.mask_reference else None
            of_reference = models.reference_logprobs(part, temperature, of_others)
            if not micro.padding:
                reference[at] = of_reference.cpu()
            if models.teacher is not None:
                of_teacher = models.teacher_logprobs(part, temperature, of_others)
                if not micro.padding:
                    teacher[at] = of_teacher.cpu()
            on_pass()

    failing_together(plan.ranks, passes)
    policy, reference, entropy = (plan.ranks.sum(x) for x in (policy, reference, entropy))
    values = values.over(plan.ranks)
    if known:
        # What an environment wrote was not sampled: no KL there.
        policy = torch.where(rollout.action_mask, rollout.logprobs, reference)
        entropy = -policy
    found = plan.ranks.sum(teacher) if models.teacher is not None else None
    return LogProbs(policy, reference, entropy, values, found)


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


def first_returns(
    rollout: Rollout, scores: Scores, config: PPOConfig, parameters: StepParameters, algorithm: Algorithm
) -> Tensor:
    """What the critic is to predict at the chosen tokens, with V = 0, λ = 1 and no KL yet."""
    known, no_critic = rollout.logprobs, no_values(None, len(rollout), len(rollout.logprobs))
    rewards = shaped_rewards(rollout, scores, LogProbs(known, known, -known, no_critic), config, parameters)
    inputs = advantage_inputs(rollout, rewards.rewards, no_critic, config.ppo, critic_only=True)
    return algorithm.advantage(inputs).returns[rollout.action_mask]


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


def positive_tokens(rollout: Rollout, scores: Scores, ppo: PPOSettings) -> Tensor | None:
    """The chosen tokens [R] bool of positive responses, by their rewards before shaping; None without that loss."""
    if ppo.positive_coef == 0:
        return None
    offsets = rollout.sequences.response_offsets
    rewards = response_rewards(scores.total, scores.per_token, offsets)
    groups = group_numbers(torch.tensor([p.id for p in rollout.prompts]))
    positive = positive_responses(rewards, groups, ppo.positive, ppo.positive_threshold)
    return positive[row_of_element(offsets)] & rollout.action_mask


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
