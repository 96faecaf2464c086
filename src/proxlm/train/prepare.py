"""From a scored rollout to the experience that the update learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.advantages import explained_variance, explained_variance_by_position, gae, whiten
from proxlm.rl.kl import kl_estimate
from proxlm.rl.shaping import apply_missing_eos, response_rewards, segment_sum, token_rewards
from proxlm.types import Experience, Progress, Rollout, Scores, ragged_index

Metrics = dict[str, float]


@torch.no_grad()
def prepare(
    models: ActorCritic,
    rollout: Rollout,
    scores: Scores,
    config: PPOConfig,
    *,
    temperature: float,
    kl_coef: float,
    layout: Sequence[Tensor],
    on_progress: Progress | None = None,
) -> tuple[Experience, Metrics]:
    """Log-probs → KL → shaped reward → GAE → whitening.

    `layout` lists the micro-batches (row indices, each row once) of the update's first pass. Running the same
    forward passes here makes the ratio of the first minibatch exactly 1 in float32.
    """
    inferred = _infer(models, rollout, config, temperature, layout, on_progress)
    sequences, mask = rollout.sequences, rollout.action_mask
    offsets = sequences.response_offsets
    ended = torch.tensor([finish != "length" for finish in rollout.finish])
    total = apply_missing_eos(scores.total, ended, config.missing_eos, config.missing_eos_penalty)
    kl = kl_estimate(
        inferred["logprobs"], inferred["ref_logprobs"], config.kl_estimator, config.max_log_ratio
    )
    rewards = token_rewards(total, kl, kl_coef, mask, offsets, scores.per_token)
    bootstrap = None
    if config.truncation == "bootstrap":
        bootstrap = torch.where(ended, 0.0, inferred["final_values"])
    raw, returns = gae(rewards, inferred["values"], mask, offsets, config.gamma, config.lam, bootstrap)
    experience = Experience(
        sequences=sequences,
        action_mask=mask,
        old_logprobs=inferred["logprobs"],
        ref_logprobs=inferred["ref_logprobs"],
        values=inferred["values"],
        rewards=rewards,
        advantages=whiten(raw, mask) if config.whiten_advantages else raw,
        returns=returns,
    )
    return experience, _metrics(experience, rollout, scores, total, raw, inferred["entropy"])


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
    count = len(rollout.logprobs)
    result = {name: torch.zeros(count) for name in ("logprobs", "entropy", "values", "ref_logprobs")}
    result["final_values"] = torch.zeros(len(rollout))
    for done, rows in enumerate(layout):
        part = sequences.select(rows).to(device)
        at = ragged_index(sequences.response_offsets, rows)
        outputs = models.policy_outputs(part, temperature, entropy=True)
        assert outputs.entropy is not None
        result["logprobs"][at] = outputs.logprobs.cpu()
        result["entropy"][at] = outputs.entropy.cpu()
        shared = outputs.states, outputs.final_states
        states, final_states = shared if models.shared else models.critic_states(part)
        result["values"][at] = models.value_head(states).cpu()
        result["ref_logprobs"][at] = models.reference_logprobs(part, temperature).cpu()
        if config.truncation == "bootstrap":
            result["final_values"][rows] = models.value_head(final_states).cpu()
        if on_progress is not None:
            on_progress(done + 1, len(layout))
    return result


def _metrics(
    experience: Experience, rollout: Rollout, scores: Scores, total: Tensor, raw: Tensor, entropy: Tensor
) -> Metrics:
    mask, offsets = experience.action_mask, experience.sequences.response_offsets
    k1 = torch.where(mask, experience.old_logprobs - experience.ref_logprobs, 0.0)
    reward = response_rewards(scores.total, scores.per_token, offsets)
    gap = (rollout.logprobs - experience.old_logprobs)[mask].abs()
    by_quarter = explained_variance_by_position(experience.values, experience.returns, mask, offsets)
    lengths = experience.sequences.response_lengths.float()
    return {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(correction=0)),
        **{f"reward/{name}": sum(v) / max(1, len(v)) for name, v in scores.components.items()},
        "reward_failed": float(scores.failed),
        "score": float(total.mean()),
        "kl": float(segment_sum(k1, offsets).mean()),
        "kl_per_token": float(k1[mask].mean()),
        "entropy": float(entropy[mask].mean()),
        "value_mean": float(experience.values[mask].mean()),
        "return_mean": float(experience.returns[mask].mean()),
        "advantage_mean": float(raw[mask].mean()),
        "advantage_std": float(raw[mask].std(correction=0)),
        "explained_variance": explained_variance(experience.values, experience.returns, mask),
        **{f"explained_variance/quarter_{k + 1}": value for k, value in enumerate(by_quarter)},
        "response_length": float(lengths.mean()),
        "eos_share": sum(finish == "eos" for finish in rollout.finish) / len(rollout),
        "ended_share": sum(finish != "length" for finish in rollout.finish) / len(rollout),
        "rollout_gap": float(gap.max()),
    }
