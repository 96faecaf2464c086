"""What a PPO step reports: metrics of its rollout, and sampled texts with per-token numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.data.tokenizer import response_tokens_as_text
from proxlm.rl.advantages import explained_variance, explained_variance_by_position
from proxlm.rl.calibration import calibration, mean_by_position
from proxlm.rl.corrections import Weights, effective_share
from proxlm.rl.kl import kl_estimate
from proxlm.rl.ragged import segment_sum
from proxlm.rl.shaping import response_rewards
from proxlm.rl.value_ensemble import spread_of_heads
from proxlm.rl.value_histogram import ValueBins, beyond_bins
from proxlm.types import Experience, Rollout, Scores

Metrics = dict[str, float]


def experience_metrics(
    experience: Experience,
    rollout: Rollout,
    scores: Scores,
    total: Tensor,
    raw: Tensor,
    entropy: Tensor,
) -> Metrics:
    """Metrics of a scored rollout before the update; of a conversation, over the policy's own tokens.

    Args:
        experience: What the update learns from.
        rollout: The responses.
        scores: What they are worth.
        total: Their shaped scores [B].
        raw: Advantages before whitening [R].
        entropy: The policy's at each token, in nats [R].
    """
    mask, offsets = experience.action_mask, experience.sequences.response_offsets
    k1 = torch.where(mask, experience.old_logprobs - experience.ref_logprobs, 0.0)
    reward = response_rewards(scores.total, scores.per_token, offsets)
    lengths = segment_sum(mask.float(), offsets)
    metrics = {
        **(reward_metrics(scores, reward, lengths) if scores.rewarded else {}),
        "score": float(total.mean()),
        "kl": float(segment_sum(k1, offsets).mean()),
        "kl_per_token": float(k1[mask].mean()),
        "entropy": float(entropy[mask].mean()),
        "return_mean": float(experience.returns[mask].mean()),
        "advantage_mean": float(raw[mask].mean()),
        "advantage_std": float(raw[mask].std(correction=0)),
        "response_length": float(lengths.mean()),
        "repetition": mean_repetition(rollout),
        "eos_share": sum(finish == "eos" for finish in rollout.finish) / len(rollout),
        "ended_share": sum(finish != "length" for finish in rollout.finish) / len(rollout),
    }
    if experience.teacher_logprobs is not None:
        k1 = torch.where(mask, experience.old_logprobs - experience.teacher_logprobs, 0.0)
        metrics["teacher/kl"] = float(segment_sum(k1, offsets).mean())
        metrics["teacher/kl_per_token"] = float(k1[mask].mean())
    if experience.sampling_mask is not None:
        metrics["kept_tokens"] = float(experience.sampling_mask.counts()[mask].double().mean())
        kept = float(experience.sampling_mask.mass[mask].double().mean())
        if not math.isnan(kept):  # an engine need not say
            metrics["dropped_mass"] = 1 - kept
    return metrics


def reward_metrics(scores: Scores, reward: Tensor, lengths: Tensor) -> Metrics:
    """Metrics of what the responses earned in all [B], which have these lengths in tokens [B]."""
    metrics = {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(correction=0)),
        **{f"reward/{name}": _mean_of_given(v) for name, v in scores.components.items()},
        "reward_failed": float(scores.failed),
    }
    length_correlation = correlation(reward, lengths)
    return (
        metrics if length_correlation is None else metrics | {"reward_length_correlation": length_correlation}
    )


def critic_metrics(experience: Experience, raw: Tensor, bins: ValueBins | None) -> Metrics:
    """How good the critic is, before the update.

    Args:
        experience: What the update learns from.
        raw: Advantages before whitening [R].
        bins: Of a categorical value head.
    """
    mask, offsets = experience.action_mask, experience.sequences.response_offsets
    values, returns = experience.values, experience.returns
    metrics = {"value_mean": float(values[mask].mean())}
    if experience.values_of_heads is not None:
        metrics["value_spread"] = float(spread_of_heads(experience.values_of_heads[mask]).mean())
    if bins is not None:
        metrics["returns_beyond_bins"] = float(beyond_bins(returns[mask], bins).double().mean())
    slope, bias = calibration(values, returns, mask)
    found = {
        "explained_variance": explained_variance(values, returns, mask),
        "value_slope": slope,
        "value_bias": bias,
    }
    by_quarter = explained_variance_by_position(values, returns, mask, offsets)
    found |= {f"explained_variance/quarter_{k + 1}": value for k, value in enumerate(by_quarter)}
    by_quarter = mean_by_position(raw, mask, offsets)
    found |= {f"advantage_mean/quarter_{k + 1}": value for k, value in enumerate(by_quarter)}
    # Returns or values that do not vary, or a quarter that no response reaches, leave nothing to judge: no number.
    finite = bool(values.isfinite().all() and returns.isfinite().all())
    return metrics | {name: value for name, value in found.items() if not (finite and math.isnan(value))}


def gap_metrics(experience: Experience, rollout: Rollout) -> Metrics:
    """The largest difference of log-probs between the policy that sampled and the one that learns, and their KL."""
    old, sampled = (x[experience.action_mask] for x in (experience.old_logprobs, rollout.logprobs))
    return {
        "rollout_gap": float((sampled - old).abs().max()),
        "rollout_kl": float(kl_estimate(sampled, old, "k3").mean()),
    }


def weight_metrics(rollout: Rollout, log_weights: Weights, weights: Weights, ppo: PPOSettings) -> Metrics:
    """Metrics of each correction that is on, over the policy's own tokens.

    Args:
        rollout: The responses.
        log_weights: Before truncation and masks [R].
        weights: The factors of the loss [R].
        ppo: Which corrections are on.
    """
    mask, found = rollout.action_mask, dict[str, float]()
    for cause, correction in (("engine", ppo.engine_correction), ("staleness", ppo.staleness_correction)):
        if correction.mode == "none":
            continue
        logs, w = getattr(log_weights, cause)[mask].double(), getattr(weights, cause)[mask].double()
        found |= {
            f"{cause}_weight/mean": float(w.mean()),
            f"{cause}_weight/max": float(w.max()),
            f"{cause}_weight/effective_share": effective_share(w),
            f"{cause}_weight/dropped_share": float((w == 0).double().mean()),
            f"{cause}_weight/kl": float((logs.exp() - 1 - logs).mean()),
        }
    return found


def staleness_metrics(rollout: Rollout, step: int, max_staleness: int) -> Metrics:
    """How many updates old the policy was that sampled each token: the mean, and the share of each age."""
    ages = step - rollout.policy_versions
    found = {"staleness": float(ages.double().mean())}
    if max_staleness:
        counts = torch.bincount(ages, minlength=max_staleness + 1).double()
        found |= {f"staleness/share_{age}": float(c) / len(ages) for age, c in enumerate(counts)}
    return found


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson's correlation of two [B] tensors; None where one varies by no more than rounding."""
    a, b = x.double() - x.double().mean(), y.double() - y.double().mean()
    varies = all(float(d.norm()) > 1e-6 * float(v.double().norm()) for d, v in ((a, x), (b, y)))
    return float(a.dot(b) / (a.norm() * b.norm())) if varies else None


def mean_repetition(rollout: Rollout) -> float:
    """Mean share of a response's token pairs that occurred in it before; 0 for a response without pairs.

    A pair is two tokens that the policy chose one after the other, with no environment's message between them.
    """
    lengths = rollout.sequences.response_lengths.tolist()
    tokens, chosen = rollout.sequences.response_tokens, rollout.action_mask
    shares = []
    for row, own in zip(tokens.split(lengths), chosen.split(lengths), strict=True):
        pairs = list(pairwise(row.tolist()))
        pairs = [pair for pair, whole in zip(pairs, (own[:-1] & own[1:]).tolist(), strict=True) if whole]
        shares.append(1 - len(set(pairs)) / len(pairs) if pairs else 0.0)
    return sum(shares) / len(shares)


def _mean_of_given(values: Sequence[float]) -> float:
    """The mean over the responses that have this component; 0 if none has."""
    given = [value for value in values if not math.isnan(value)]
    return sum(given) / max(1, len(given))


def sample_rows(
    rollout: Rollout, experience: Experience, scores: Scores, tokenizer: Any, count: int
) -> list[dict[str, Any]]:
    """The first `count` responses as rows of samples.jsonl, with per-token numbers aligned with `tokens`."""
    rewards = response_rewards(scores.total, scores.per_token, rollout.sequences.response_offsets).tolist()
    offsets = rollout.sequences.response_offsets.tolist()
    tokens = rollout.sequences.response_tokens.tolist()
    per_token: dict[str, Tensor] = {
        "logprob": experience.old_logprobs,
        "kl": experience.old_logprobs - experience.ref_logprobs,
        "reward": experience.rewards,
        "value": experience.values,
        "advantage": experience.advantages,
    }
    if experience.teacher_logprobs is not None:
        per_token["teacher_kl"] = experience.old_logprobs - experience.teacher_logprobs
    if experience.sampling_mask is not None:
        per_token["kept"] = experience.sampling_mask.counts()
    rows = []
    for b in range(min(count, len(rollout))):
        span = slice(offsets[b], offsets[b + 1])
        rows.append(
            {
                "prompt_id": rollout.prompts[b].id,
                "prompt": rollout.prompts[b].text,
                "response": rollout.texts[b],
                "finish": rollout.finish[b],
                "reward": round(rewards[b], 5) if scores.rewarded else None,
                "components": {
                    name: None if math.isnan(values[b]) else values[b]
                    for name, values in scores.components.items()
                },
                "tokens": response_tokens_as_text(tokenizer, tokens[span]),
                "per_token": {name: [round(x, 5) for x in t[span].tolist()] for name, t in per_token.items()},
            }
        )
    return rows
