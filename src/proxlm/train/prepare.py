"""From a scored rollout to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOJob
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.advantages import length_adaptive_lambda, whiten
from proxlm.rl.corrections import rollout_weights
from proxlm.rl.estimators import AdvantageInputs, group_numbers
from proxlm.rl.kl import kl_estimate
from proxlm.rl.moments import Moments, clip_advantages
from proxlm.rl.shaping import segment_sum, token_rewards
from proxlm.train.algorithms import Algorithm
from proxlm.train.observe import Metrics, experience_metrics, gap_metrics
from proxlm.train.scores import shape_scores
from proxlm.types import Experience, Progress, Rollout, Scores, ragged_index


@dataclass(frozen=True)
class StepNumbers:
    """What changes from step to step: temperature, β, the moments of the scores, whether only the critic learns."""

    temperature: float
    kl_coef: float
    moments: Moments
    warmup: bool


@torch.no_grad()
def prepare(
    models: ActorCritic,
    rollout: Rollout,
    scores: Scores,
    job: PPOJob,
    algorithm: Algorithm,
    now: StepNumbers,
    layout: Sequence[Tensor],
    on_progress: Progress | None = None,
) -> tuple[Experience, Metrics]:
    """Log-probs → KL → shaped reward → advantages → whitening.

    `layout` lists the micro-batches (row indices, each row once) of the update's first pass. Running the same
    forward passes here makes the ratio of the first minibatch exactly 1 in float32. With `ppo.old_logprobs` =
    "rollout" the policy makes no pass here, and the entropy is that of the sampled tokens, −log π, whose mean it is.
    """
    ppo = job.ppo
    inferred = _infer(models, rollout, ppo, now.temperature, layout, on_progress)
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets
    limit, bootstrap = job.rollout.max_new_tokens, ppo.truncation == "bootstrap"
    shaped = shape_scores(rollout, scores, job.shaping, now.moments, limit, ppo.gamma, bootstrap)
    kl = kl_estimate(inferred["logprobs"], inferred["ref_logprobs"], ppo.kl_estimator, ppo.max_log_ratio)
    in_reward = now.kl_coef if ppo.kl_in == "reward" else 0.0
    rewards = token_rewards(shaped.total, kl, in_reward, mask, offsets, shaped.per_token)
    if job.shaping.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    raw, returns = algorithm.advantage(_advantage_inputs(rollout, rewards, inferred, ppo, now.warmup))
    advantages = clip_advantages(whiten(raw, mask) if algorithm.whiten else raw, ppo.advantage_clip)
    c = ppo.correction
    experience = Experience(
        sequences=rollout.sequences,
        action_mask=mask,
        old_logprobs=inferred["logprobs"],
        ref_logprobs=inferred["ref_logprobs"],
        values=inferred["values"],
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        correction=rollout_weights(
            inferred["logprobs"],
            rollout.logprobs,
            mask,
            offsets,
            c.mode,
            c.level,
            c.cap,
            c.low,
            c.high,
            ppo.max_log_ratio,
        ),
    )
    has_critic = models.value_head is not None
    metrics = experience_metrics(
        experience, rollout, scores, shaped.total, raw, inferred["entropy"], has_critic
    )
    return experience, metrics | ({} if ppo.old_logprobs == "rollout" else gap_metrics(experience, rollout))


def _advantage_inputs(
    rollout: Rollout, rewards: Tensor, inferred: dict[str, Tensor], ppo: PPOConfig, warmup: bool
) -> AdvantageInputs:
    offsets = rollout.sequences.response_offsets
    lam: float | Tensor = ppo.lam
    if ppo.lam_length > 0:
        lam = length_adaptive_lambda(segment_sum(rollout.action_mask.float(), offsets), ppo.lam_length)
    bootstrap = None
    if ppo.truncation == "bootstrap":
        bootstrap = torch.where(rollout.ended, 0.0, inferred["final_values"])
    critic_lam = ppo.critic_lam if ppo.critic_lam >= 0 else None
    return AdvantageInputs(
        rewards=rewards,
        values=inferred["values"],
        action_mask=rollout.action_mask,
        offsets=offsets,
        groups=group_numbers(torch.tensor([p.id for p in rollout.prompts])),
        bootstrap=bootstrap,
        gamma=ppo.gamma,
        lam=lam,
        critic_lam=1.0 if warmup else critic_lam,
        turns=ppo.gae_steps == "turn",
        group_std=ppo.group_std,
    )


def _infer(
    models: ActorCritic,
    rollout: Rollout,
    config: PPOConfig,
    temperature: float,
    layout: Sequence[Tensor],
    on_progress: Progress | None,
) -> dict[str, Tensor]:
    """All that the networks say of the rollout: [R] float32 tensors, and final_values [B] where needed."""
    sequences, device = rollout.sequences, models.policy.device
    count, known = len(rollout.logprobs), config.old_logprobs == "rollout"
    result = {name: torch.zeros(count) for name in ("logprobs", "entropy", "values", "ref_logprobs")}
    result["final_values"] = torch.zeros(len(rollout))
    for done, rows in enumerate(layout):
        part, states = sequences.select(rows).to(device), None
        at = ragged_index(sequences.response_offsets, rows)
        if not known:
            outputs = models.policy_outputs(part, temperature, entropy=True)
            assert outputs.entropy is not None
            result["logprobs"][at] = outputs.logprobs.cpu()
            result["entropy"][at] = outputs.entropy.cpu()
            states = (outputs.states, outputs.final_states) if models.shared else None
        result["ref_logprobs"][at] = models.reference_logprobs(part, temperature).cpu()
        if models.value_head is not None:
            predicting, final = states or models.critic_states(part)
            result["values"][at] = models.value_of(predicting).cpu()
            if config.truncation == "bootstrap":
                result["final_values"][rows] = models.value_of(final).cpu()
        if on_progress is not None:
            on_progress(done + 1, len(layout))
    if known:
        # What an environment said was not sampled: no KL there.
        chosen = torch.where(rollout.action_mask, rollout.logprobs, result["ref_logprobs"])
        result |= {"logprobs": chosen, "entropy": -chosen}
    return result
