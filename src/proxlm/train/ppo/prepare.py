"""From a scored rollout to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import PPOConfig, PPOSettings
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.advantages import length_adaptive_lambda, whiten
from proxlm.rl.corrections import rollout_weights
from proxlm.rl.estimators import AdvantageInputs, Advantages, group_numbers
from proxlm.rl.kl import kl_estimate
from proxlm.rl.ragged import ragged_index, segment_sum
from proxlm.rl.running_statistics import RunningStatistics, clip_advantages
from proxlm.rl.shaping import token_rewards
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.critic import CriticsFirst
from proxlm.train.ppo.metrics import Metrics, experience_metrics, gap_metrics
from proxlm.train.ppo.score_shaping import shape_scores
from proxlm.types import Experience, Progress, Rollout, Scores


@dataclass(frozen=True)
class StepNumbers:
    """What changes from step to step: temperature, β, the moments of the scores, whether only the critic learns."""

    temperature: float
    kl_coef: float
    moments: RunningStatistics
    warmup: bool


@torch.no_grad()
def prepare(
    models: ActorCritic,
    rollout: Rollout,
    scores: Scores,
    job: PPOConfig,
    algorithm: Algorithm,
    now: StepNumbers,
    layout: Sequence[Tensor],
    on_progress: Progress | None = None,
    critics_first: CriticsFirst | None = None,
) -> tuple[Experience, Metrics]:
    """Log-probs → KL → shaped reward → advantages → whitening.

    `layout` lists the micro-batches (row indices, each row once) of the update's first pass. Running the same
    forward passes here makes the ratio of the first minibatch exactly 1 in float32. With `ppo.old_logprobs` =
    "rollout" the policy makes no pass here, and the entropy is that of the sampled tokens, −log π, whose mean it is.
    critics_first: the critic's first gradient is taken here, too.
    """
    ppo = job.ppo
    passes = 2 if _critic_has_passes(models, ppo) else 1
    steps = _Steps(passes * len(layout), on_progress)
    inferred = _of_policies(models, rollout, ppo, now.temperature, layout, steps)
    mask, offsets = rollout.action_mask, rollout.sequences.response_offsets
    limit, bootstrap = job.rollout.max_new_tokens, ppo.truncation == "bootstrap"
    shaped = shape_scores(rollout, scores, job.shaping, now.moments, limit, ppo.gamma, bootstrap)
    kl = kl_estimate(inferred["logprobs"], inferred["ref_logprobs"], ppo.kl_estimator, ppo.max_log_ratio)
    in_reward = now.kl_coef if ppo.kl_in == "reward" else 0.0
    rewards = token_rewards(shaped.total, kl, in_reward, mask, offsets, shaped.per_token)
    rewards = whiten(rewards, mask, shift_mean=False) if job.shaping.whiten_rewards else rewards

    def advantages_of(part: Rollout, at: Tensor, values: Tensor, final: Tensor) -> Advantages:
        return algorithm.advantage(_advantage_inputs(part, rewards[at], values, final, ppo, now.warmup))

    values, final = _of_critic(models, rollout, ppo, layout, inferred, steps, critics_first, advantages_of)
    raw, returns = advantages_of(rollout, torch.arange(len(values)), values, final)
    advantages = clip_advantages(whiten(raw, mask) if algorithm.whiten else raw, ppo.advantage_clip)
    experience = Experience(
        sequences=rollout.sequences,
        action_mask=mask,
        old_logprobs=inferred["logprobs"],
        ref_logprobs=inferred["ref_logprobs"],
        values=values,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        correction=_correction(rollout, inferred["logprobs"], ppo),
    )
    has_critic = models.value_head is not None
    metrics = experience_metrics(
        experience, rollout, scores, shaped.total, raw, inferred["entropy"], has_critic
    )
    return experience, metrics | ({} if ppo.old_logprobs == "rollout" else gap_metrics(experience, rollout))


def _correction(rollout: Rollout, old_logprobs: Tensor, ppo: PPOSettings) -> Tensor:
    c, offsets = ppo.correction, rollout.sequences.response_offsets
    given = old_logprobs, rollout.logprobs, rollout.action_mask, offsets
    return rollout_weights(*given, c.mode, c.level, c.cap, c.low, c.high, ppo.max_log_ratio)


def _critic_has_passes(models: ActorCritic, ppo: PPOSettings) -> bool:
    """Whether values need passes of their own: not where the policy's are made, of a trunk that both share."""
    return models.value_head is not None and (not models.shared or ppo.old_logprobs == "rollout")


class _Steps:
    """Counts passes over micro-batches."""

    def __init__(self, total: int, tell: Progress | None) -> None:
        self.done, self.total, self.tell = 0, total, tell

    def one(self) -> None:
        self.done += 1
        if self.tell is not None:
            self.tell(self.done, self.total)


def _advantage_inputs(
    rollout: Rollout, rewards: Tensor, values: Tensor, final: Tensor, ppo: PPOSettings, warmup: bool
) -> AdvantageInputs:
    offsets = rollout.sequences.response_offsets
    lam: float | Tensor = ppo.lam
    if ppo.lam_length > 0:
        lam = length_adaptive_lambda(segment_sum(rollout.action_mask.float(), offsets), ppo.lam_length)
    critic_lam = ppo.critic_lam if ppo.critic_lam >= 0 else None
    return AdvantageInputs(
        rewards=rewards,
        values=values,
        action_mask=rollout.action_mask,
        offsets=offsets,
        groups=group_numbers(torch.tensor([p.id for p in rollout.prompts])),
        bootstrap=torch.where(rollout.ended, 0.0, final) if ppo.truncation == "bootstrap" else None,
        gamma=ppo.gamma,
        lam=lam,
        critic_lam=1.0 if warmup else critic_lam,
        turns=ppo.gae_steps == "turn",
        group_std=ppo.group_std,
    )


def _of_policies(
    models: ActorCritic,
    rollout: Rollout,
    config: PPOSettings,
    temperature: float,
    layout: Sequence[Tensor],
    steps: _Steps,
) -> dict[str, Tensor]:
    """Log-probs of policy and reference and the policy's entropy, [R] float32; values [R] and final_values [B] of a
    trunk that policy and critic share, 0 if they do not or it makes no pass here."""
    sequences, device = rollout.sequences, models.policy.device
    known = config.old_logprobs == "rollout"
    count = len(rollout.logprobs)
    result = {name: torch.zeros(count) for name in ("logprobs", "entropy", "values", "ref_logprobs")}
    result["final_values"] = torch.zeros(len(rollout))
    for rows in layout:
        part, at = sequences.select(rows).to(device), ragged_index(sequences.response_offsets, rows)
        if not known:
            outputs = models.policy_outputs(part, temperature, entropy=True)
            assert outputs.entropy is not None
            result["logprobs"][at] = outputs.logprobs.cpu()
            result["entropy"][at] = outputs.entropy.cpu()
            if models.shared:
                result["values"][at] = models.value_of(outputs.states).cpu()
                result["final_values"][rows] = models.value_of(outputs.final_states).cpu()
        result["ref_logprobs"][at] = models.reference_logprobs(part, temperature).cpu()
        steps.one()
    if known:
        # What an environment said was not sampled: no KL there.
        chosen = torch.where(rollout.action_mask, rollout.logprobs, result["ref_logprobs"])
        result |= {"logprobs": chosen, "entropy": -chosen}
    return result


def _of_critic(
    models: ActorCritic,
    rollout: Rollout,
    ppo: PPOSettings,
    layout: Sequence[Tensor],
    inferred: dict[str, Tensor],
    steps: _Steps,
    first: CriticsFirst | None,
    advantages_of: Callable[[Rollout, Tensor, Tensor, Tensor], Advantages],
) -> tuple[Tensor, Tensor]:
    """V before each response token [R] and after each row's last token [B], float32; 0 without a critic."""
    values, final = inferred["values"], inferred["final_values"]
    if not _critic_has_passes(models, ppo):
        return values, final
    offsets = rollout.sequences.response_offsets
    for done, rows in enumerate(layout):
        part, at = rollout.sequences.select(rows).to(models.policy.device), ragged_index(offsets, rows)
        learns = first if first is not None and done < first.count else None
        states, ends = learns.states(models, part) if learns else models.critic_states(part)
        values[at], final[rows] = models.value_of(states).detach().cpu(), models.value_of(ends).detach().cpu()
        if learns:
            returns = advantages_of(rollout.select(rows), at, values[at], final[rows]).returns
            learns.learn(models, states, values[at], returns, at)
        steps.one()
    return values, final
