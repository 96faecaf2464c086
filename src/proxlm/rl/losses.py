"""The losses of PPO, per token, and how tokens become one number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.rl.advantages import Reduce, one_rank
from proxlm.rl.ragged import row_of_element, segment_sum


class PolicyLoss(NamedTuple):
    """Per-token terms [R] of the clipped objective; `loss` carries the gradient, the rest is detached."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    max_log_ratio: float = 20.0,
    dual_clip: float = 0.0,
) -> PolicyLoss:
    """−min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) with ρ = π_new / π_old (Schulman et al. 2017, equation 7).

    The gradient is 0 exactly where A > 0 and ρ > 1 + ε_high, or A < 0 and ρ < 1 − ε_low. The log-ratio is
    clamped to ± max_log_ratio before exp, so that the loss is finite for any input; beyond that there is no
    gradient either. approx_kl = (log ρ)² / 2.

    Args:
        logprobs: log π_new of the tokens [R], with gradient.
        old_logprobs: log π_old [R].
        advantages: A [R].
        clip_low: ε_low.
        clip_high: ε_high.
        max_log_ratio: The largest log-ratio, either way.
        dual_clip: c > 1: for A < 0 the loss is at most −c A, so a ρ beyond c has no gradient (Ye et al. 2020);
            0: off.

    Returns:
        Per-token terms [R]; `clipped` is bool.
    """
    if not logprobs.shape == old_logprobs.shape == advantages.shape:
        raise ValueError(
            f"shapes differ: {tuple(logprobs.shape)}, {tuple(old_logprobs.shape)}, {tuple(advantages.shape)}"
        )
    log_ratio = logprobs - old_logprobs
    ratio = torch.exp(log_ratio.clamp(-max_log_ratio, max_log_ratio))
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = torch.maximum(-advantages * ratio, -advantages * bounded)
    clipped = (advantages > 0) & (ratio > 1.0 + clip_high) | (advantages < 0) & (ratio < 1.0 - clip_low)
    if dual_clip > 0:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
        clipped = clipped | (advantages < 0) & (ratio > dual_clip)
    approx_kl = 0.5 * log_ratio.detach().square()
    return PolicyLoss(loss, ratio.detach(), clipped, approx_kl)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± c) − R)²) per token (openai/baselines ppo2; Ziegler et al. 2019).

    Where the clipped branch is the larger, the gradient is 0.

    Args:
        values: V [R], with gradient.
        old_values: V before the update [R].
        returns: R, what V is to predict [R].
        clip: c; 0: no clipping, ½ (V − R)².

    Returns:
        The loss of each token [R].
    """
    if not values.shape == old_values.shape == returns.shape:
        raise ValueError(
            f"shapes differ: {tuple(values.shape)}, {tuple(old_values.shape)}, {tuple(returns.shape)}"
        )
    plain = (values - returns).square()
    if clip == 0:
        return 0.5 * plain
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    return 0.5 * torch.maximum(plain, (near - returns).square())


def entropy_coefficient(coefficient: float, entropy: float, floor: float) -> float:
    """The factor of the entropy bonus in this step.

    Args:
        coefficient: The bonus's factor.
        entropy: The policy's mean entropy in this step, in nats per token.
        floor: The bonus acts only while the entropy is below it, like a thermostat; 0: always.
    """
    return coefficient if floor == 0 or entropy < floor else 0.0


def token_weights(
    action_mask: Tensor, offsets: Tensor, aggregation: str, limit: int, reduce: Reduce = one_rank
) -> Tensor:
    """Weights w with Σ w_t ℓ_t = the minibatch's loss. Computed over the whole minibatch, before any split.

    "token": 1 / (chosen tokens). "sequence": 1 / (sequences with a chosen token · its chosen tokens), the mean of
    per-sequence means. "fixed": 1 / (sequences with a chosen token · limit) (Liu et al. 2025, Dr. GRPO).
    Summing over micro-batches in any split gives the same loss and gradient.

    Args:
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        aggregation: "token", "sequence" or "fixed".
        limit: The longest response in tokens.
        reduce: Sums over ranks, where each holds other rows of the minibatch.

    Returns:
        [R] float32, 0 where the token was not chosen.
    """
    if int(offsets[-1]) != len(action_mask):
        raise ValueError(f"offsets end at {int(offsets[-1])}, but there are {len(action_mask)} tokens")
    mask = action_mask.float()
    if aggregation == "token":
        return mask / reduce(mask.sum()).clamp(min=1)
    row, chosen = row_of_element(offsets), segment_sum(mask, offsets)
    sequences = reduce((chosen > 0).sum()).clamp(min=1)
    if aggregation == "sequence":
        return mask / (chosen[row].clamp(min=1) * sequences)
    if aggregation == "fixed":
        return mask / (limit * sequences)
    raise ValueError(f'aggregation must be "token", "sequence" or "fixed", got "{aggregation}"')


def positive_responses(rewards: Tensor, groups: Tensor, which: str, threshold: float = 1.0) -> Tensor:
    """The responses whose log-likelihood is raised besides (Yue et al. 2025, VAPO, section 4: positive examples).

    "threshold": reward ≥ threshold. "best": the highest reward of the prompt's responses, all that have it; none
    where the prompt's rewards are all the same.

    Args:
        rewards: [B].
        groups: [B] int64, 0 to G − 1; rows that answer the same prompt have the same number.
        which: "threshold" or "best".
        threshold: The lowest reward of a positive response.

    Returns:
        [B] bool.
    """
    if which == "threshold":
        return rewards >= threshold
    if which == "best":
        highest, lowest = (
            rewards.scatter_reduce(0, groups, rewards, how, include_self=False)[groups]
            for how in ("amax", "amin")
        )
        return (rewards == highest) & (highest > lowest)
    raise ValueError(f'which must be "threshold" or "best", got "{which}"')
