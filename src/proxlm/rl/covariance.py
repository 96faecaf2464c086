"""The covariance of log-probs and advantages, token by token, and the tokens where it is high.

A softmax policy's entropy falls in a step by about the learning rate times Cov(log π, A), and a few tokens make most
of that covariance (Cui et al. 2025, "The entropy mechanism of reinforcement learning for reasoning language models",
sections 3 and 4.2). Clip-Cov and KL-Cov treat those tokens apart. All is over a step's whole batch, under the policy
before its update, so that no split of the batch changes which tokens they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def token_covariance(logprobs: Tensor, advantages: Tensor, action_mask: Tensor) -> Tensor:
    """Each token's part of the covariance: (log π_t − mean log π) · (A_t − mean A) (Cui et al. 2025).

    Args:
        logprobs: log π of the tokens [R].
        advantages: A [R].
        action_mask: [R] bool, True where the policy chose the token; means are over these.

    Returns:
        [R] float64, 0 where the policy did not choose. Its mean over chosen tokens is their covariance.
    """
    if not logprobs.shape == advantages.shape == action_mask.shape:
        raise ValueError(
            f"shapes differ: {tuple(logprobs.shape)}, {tuple(advantages.shape)}, {tuple(action_mask.shape)}"
        )
    if not bool(action_mask.any()):
        return torch.zeros(action_mask.shape, dtype=torch.float64)
    of_logprobs, of_advantages = (x.double() - x[action_mask].double().mean() for x in (logprobs, advantages))
    return torch.where(action_mask, of_logprobs * of_advantages, 0.0)


def clip_cov_tokens(
    covariance: Tensor, uniforms: Tensor, action_mask: Tensor, share: float, low: float, high: float
) -> Tensor:
    """Clip-Cov's tokens: ⌊share · N⌋ of those with low ≤ covariance ≤ high, at random.

    Args:
        covariance: Of each token [R].
        uniforms: A random number for each token [R]; those with the lowest are taken.
        action_mask: [R] bool; N tokens are True.
        share: Of the chosen tokens, 0 to 1.
        low: ω_low.
        high: ω_high.

    Returns:
        [R] bool; fewer than ⌊share · N⌋ where fewer are within the bounds.
    """
    within = (action_mask & (covariance >= low) & (covariance <= high)).nonzero()[:, 0]
    return _only(within[uniforms[within].argsort()], action_mask, share)


def kl_cov_tokens(covariance: Tensor, uniforms: Tensor, action_mask: Tensor, share: float) -> Tensor:
    """KL-Cov's tokens: the ⌊share · N⌋ with the highest covariance.

    Args:
        covariance: Of each token [R].
        uniforms: A random number for each token [R]; of equal tokens those with the lowest are taken, so that the
            order of rows does not matter.
        action_mask: [R] bool; N tokens are True.
        share: Of the chosen tokens, 0 to 1.

    Returns:
        [R] bool.
    """
    chosen = action_mask.nonzero()[:, 0]
    chosen = chosen[uniforms[chosen].argsort()]
    order = covariance[chosen].argsort(descending=True, stable=True)
    return _only(chosen[order], action_mask, share)


def _only(ordered: Tensor, action_mask: Tensor, share: float) -> Tensor:
    """The first ⌊share · N⌋ of these indices, as a mask [R]."""
    # 0.29 · 100 is 28.999…96 in floating point.
    count = math.floor(share * int(action_mask.sum()) + 1e-9)
    return torch.zeros_like(action_mask).index_fill(0, ordered[:count], True)
