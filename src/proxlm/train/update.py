"""One PPO update: passes × minibatches × micro-batches over an experience."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proxlm.config import PPOConfig
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.forward import micro_batches
from proxlm.rl.losses import clipped_policy_loss, clipped_value_loss, token_weights
from proxlm.seeds import derive_seed
from proxlm.train.optimiser import Optimiser
from proxlm.types import Experience, Progress, offsets_of, ragged_index


@dataclass(frozen=True)
class Optimisers:
    """One optimiser for the policy, one for the critic (its trunk, if it has its own, and the value head)."""

    policy: Optimiser
    critic: Optimiser


@dataclass
class MinibatchStats:
    """What one optimiser step saw; means are over the minibatch's chosen tokens."""

    policy_loss: float = 0.0
    value_loss: float = 0.0
    ratio_mean: float = 0.0
    ratio_max: float = 0.0
    ratio_error: float = 0.0
    clip_fraction: float = 0.0
    approx_kl: float = 0.0
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)


def plan_pass(lengths: Tensor, config: PPOConfig, seed: int, step: int, epoch: int) -> list[list[Tensor]]:
    """The minibatches of one pass, each a list of micro-batches of row indices.

    Rows are shuffled anew for each pass, by a generator seeded with (seed, step, epoch) alone. lengths [B].
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "pass", step, epoch))
    order = torch.randperm(len(lengths), generator=generator)
    minibatches = torch.tensor_split(order, config.minibatches)
    return [
        [rows[i] for i in micro_batches(lengths[rows], config.micro_batch_tokens)] for rows in minibatches
    ]


def update(
    models: ActorCritic,
    optimisers: Optimisers,
    experience: Experience,
    config: PPOConfig,
    *,
    temperature: float,
    limit: int,
    seed: int,
    step: int,
    on_progress: Progress | None = None,
) -> list[MinibatchStats]:
    """Learn from an experience. Returns the statistics of each optimiser step, in order.

    limit: the longest response in tokens. Splitting a minibatch into micro-batches changes memory, not the
    gradient: every token's weight is fixed over the whole minibatch first.
    """
    stats: list[MinibatchStats] = []
    planned = config.epochs * config.minibatches
    for epoch in range(config.epochs):
        for minibatch in plan_pass(experience.sequences.lengths, config, seed, step, epoch):
            stats.append(_minibatch_gradient(models, experience, minibatch, config, temperature, limit))
            done, total = step * planned + len(stats) - 1, config.steps * planned
            for name, optimiser in (("policy", optimisers.policy), ("critic", optimisers.critic)):
                stats[-1].grad_norm[name], stats[-1].lr[name] = optimiser.step(done, total)
            if on_progress is not None:
                on_progress(len(stats), planned)
        seen = [s.approx_kl for s in stats[-config.minibatches :]]
        if config.target_kl > 0 and sum(seen) / len(seen) > config.target_kl:
            break
    return stats


def _minibatch_gradient(
    models: ActorCritic,
    experience: Experience,
    minibatch: list[Tensor],
    config: PPOConfig,
    temperature: float,
    limit: int,
) -> MinibatchStats:
    """Accumulate the minibatch's gradient, micro-batch by micro-batch."""
    rows = torch.cat(minibatch)
    offsets = experience.sequences.response_offsets
    places = ragged_index(offsets, rows)
    mask = experience.action_mask[places]
    weights = torch.zeros(len(experience.action_mask))
    lengths = experience.sequences.response_lengths[rows]
    weights[places] = token_weights(mask, offsets_of(lengths), config.aggregation, limit)
    tokens = max(1, int(mask.sum()))
    stats = MinibatchStats()
    for micro in minibatch:
        _micro_batch_gradient(
            models,
            experience.select(micro),
            weights[ragged_index(offsets, micro)],
            config,
            temperature,
            stats,
            tokens,
        )
    return stats


def _micro_batch_gradient(
    models: ActorCritic,
    part: Experience,
    weights: Tensor,
    config: PPOConfig,
    temperature: float,
    stats: MinibatchStats,
    tokens: int,
) -> None:
    """Backward through one micro-batch and add its share to `stats`."""
    device = models.policy.device
    sequences, weights = part.sequences.to(device), weights.to(device)
    outputs = models.policy_outputs(sequences, temperature, entropy=config.entropy_coef > 0)
    terms = clipped_policy_loss(
        outputs.logprobs,
        part.old_logprobs.to(device),
        part.advantages.to(device),
        config.clip_low,
        config.clip_high,
        config.max_log_ratio,
    )
    policy_loss = (weights * terms.loss).sum()
    loss = policy_loss
    if outputs.entropy is not None:
        entropy = (weights * outputs.entropy).sum()
        loss = loss - config.entropy_coef * entropy
    if models.shared:
        values = models.value_head(outputs.states)
    else:
        # Two passes, two graphs, one after the other: only one is ever held.
        loss.backward()
        values, loss = models.values(sequences), torch.zeros((), device=device)
    errors = clipped_value_loss(values, part.values.to(device), part.returns.to(device), config.clip_value)
    value_loss = (weights * errors).sum()
    (loss + config.value_coef * value_loss).backward()
    stats.policy_loss += float(policy_loss.detach())
    stats.value_loss += float(value_loss.detach())
    mask = part.action_mask.to(device)
    if bool(mask.any()):
        ratio = terms.ratio[mask]
        stats.ratio_mean += float(ratio.sum()) / tokens
        stats.clip_fraction += float(terms.clipped[mask].sum()) / tokens
        stats.approx_kl += float(terms.approx_kl[mask].sum()) / tokens
        stats.ratio_max = max(stats.ratio_max, float(ratio.max()))
        stats.ratio_error = max(stats.ratio_error, float((ratio - 1).abs().max()))


def summarise(stats: list[MinibatchStats]) -> dict[str, float]:
    """The step's metrics: means over its optimiser steps, maxima of maxima, the last learning rates."""
    names = ("policy_loss", "value_loss", "ratio_mean", "clip_fraction", "approx_kl")
    metrics = {name: sum(getattr(s, name) for s in stats) / len(stats) for name in names}
    metrics["ratio_max"] = max(s.ratio_max for s in stats)
    metrics["optimiser_steps"] = float(len(stats))
    metrics["first_minibatch/ratio_error"] = stats[0].ratio_error
    metrics["first_minibatch/clip_fraction"] = stats[0].clip_fraction
    for who in stats[0].grad_norm:
        norms = [s.grad_norm[who] for s in stats]
        metrics[f"grad_norm/{who}"] = sum(norms) / len(norms)
        metrics[f"grad_norm/{who}_not_finite"] = float(sum(not math.isfinite(n) for n in norms))
        metrics[f"lr/{who}"] = stats[-1].lr[who]
    return metrics
