"""Weights for tokens that another policy sampled than the one whose log-probs the update starts from.

Two causes, two weights. The engine is not the trainer (rounded weights, other kernels):
w_e = π_v / π_roll, the policy of the version v that sampled, by the trainer's passes, over what it was sampled with.
The rollout is older than the update: w_s = π_old / π_v. Their product is π_old / π_roll.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.rl.ragged import row_of_element, segment_sum


class Weights(NamedTuple):
    """engine, staleness [R]: the two weights, or their logarithms, which add up to log π_old − log π_roll."""

    engine: Tensor
    staleness: Tensor


MODES = (
    "none", "token", "token_truncate", "token_mask", "sequence", "sequence_truncate", "sequence_mask",
    "geometric_mask",
)  # fmt: skip


def split_log_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, trainer_logprobs: Tensor | None, stale: Tensor
) -> Weights:
    """The logarithms of both weights.

    With π_v unknown the whole ratio is one of them: the engine's where the token is of the present version, since
    π_v = π_old there; the staleness's where it is older, which is right for an engine that agrees with the trainer.

    Args:
        old_logprobs: log π_old of the tokens [R].
        rollout_logprobs: log π_roll, with which they were sampled [R].
        trainer_logprobs: log π_v, by the trainer's passes [R]; None: not computed.
        stale: [R] bool, True where an older version sampled the token.
    """
    if not old_logprobs.shape == rollout_logprobs.shape == stale.shape:
        raise ValueError(
            f"shapes differ: {tuple(old_logprobs.shape)}, {tuple(rollout_logprobs.shape)}, {tuple(stale.shape)}"
        )
    between = torch.where(stale, rollout_logprobs, old_logprobs)
    if trainer_logprobs is not None:
        between = torch.where(stale, trainer_logprobs, old_logprobs)
    return Weights(between - rollout_logprobs, old_logprobs - between)


def importance_weights(
    log_weights: Tensor,
    action_mask: Tensor,
    offsets: Tensor,
    mode: str,
    low: float = 0.0,
    high: float = float("inf"),
    max_log_ratio: float = 20.0,
) -> Tensor:
    """f(w), a factor of each token's policy loss, never with gradient.

    "none": 1. "token": w_t (Hilton et al. 2021; Fu et al. 2025, AReaL, equation 5). "token_truncate": min(w_t, high)
    (Yao et al. 2025, TIS). "token_mask": w_t where low ≤ w_t ≤ high, else 0 (IcePop, 2025).
    "sequence", "sequence_truncate", "sequence_mask": the same of w_b = Π_t w_t over the response's chosen tokens.
    "geometric_mask": 1 where low ≤ w_b^(1/T) ≤ high, else 0: a response is kept or dropped by the mean log-ratio of
    its T chosen tokens, which does not grow with T (Liu, Li et al. 2025; DeepSeek-V3.2, equation 9, has one bound).

    Args:
        log_weights: log w_t [R].
        action_mask: [R] bool, True where the policy chose the token.
        offsets: [B+1].
        mode: One of `MODES`.
        low: What masks do not keep is below it.
        high: What masks do not keep is above it; truncation's limit.
        max_log_ratio: Log-weights are clamped to ± this before exp.

    Returns:
        Weights [R], 1 where the policy did not choose.
    """
    if mode not in MODES:
        raise ValueError(f'mode must be one of {", ".join(MODES)}; got "{mode}"')
    if log_weights.shape != action_mask.shape or int(offsets[-1]) != len(log_weights):
        raise ValueError(
            f"shapes do not fit: log-weights {tuple(log_weights.shape)}, mask {tuple(action_mask.shape)}, offsets end"
            f" at {int(offsets[-1])}"
        )
    if mode == "none":
        return torch.ones_like(log_weights)
    logs = torch.where(action_mask, log_weights, 0.0).detach()
    level, _, bounded = mode.partition("_")
    if level != "token":
        of_row = segment_sum(logs, offsets)
        if level == "geometric":
            of_row = of_row / segment_sum(
                action_mask.to(logs.dtype), offsets
            )  # no token chosen: NaN, of no token
        logs = of_row[row_of_element(offsets)]
    weights = torch.exp(logs.clamp(-max_log_ratio, max_log_ratio))
    if bounded == "truncate":
        weights = weights.clamp(max=high)
    elif bounded == "mask":
        kept = weights if level != "geometric" else torch.ones_like(weights)
        weights = torch.where((weights >= low) & (weights <= high), kept, 0.0)
    return torch.where(action_mask, weights, 1.0)


def effective_share(weights: Tensor) -> float:
    """(Σ w)² / (n Σ w²), the effective sample size as a share of n weights (Kong 1992); 0 where all are 0."""
    w = weights.double()
    square = float(w.square().sum())
    return float(w.sum()) ** 2 / (len(w) * square) if square else 0.0
