"""What an optimiser step saw, and a step's metrics from all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from proxlm.config.signature import checked
from proxlm.distributed.ranks import Ranks
from proxlm.rl.losses import PolicyLoss

SUMS = (
    "policy_loss",
    "value_loss",
    "kl_loss",
    "positive_loss",
    "ptx_loss",
    "ratio_mean",
    "clip_fraction",
    "approx_kl",
)
MAXIMA = ("ratio_max", "ratio_error")


@dataclass
class MinibatchStats:
    """What one optimiser step saw; means are over the minibatch's `tokens` chosen tokens, those of all ranks.

    policy: whether the policy learned in it, so that its numbers mean something; extra: a trust-region step's own.
    """

    tokens: int = 0
    policy: bool = False
    policy_loss: float = 0.0
    value_loss: float = 0.0
    kl_loss: float = 0.0
    positive_loss: float = 0.0
    ptx_loss: float = 0.0
    ratio_mean: float = 0.0
    ratio_max: float = 0.0
    ratio_error: float = 0.0
    clip_fraction: float = 0.0
    approx_kl: float = 0.0
    grad_norm: dict[str, float] = field(default_factory=dict)
    lr: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)

    def add_terms(self, terms: PolicyLoss, mask: Tensor) -> None:
        """Take in a micro-batch's terms [R]; mask [R] bool: the tokens that count."""
        self.policy = True
        if not bool(mask.any()):
            return
        ratio = terms.ratio[mask]
        self.ratio_mean += float(ratio.sum()) / self.tokens
        self.clip_fraction += float(terms.clipped[mask].sum()) / self.tokens
        self.approx_kl += float(terms.approx_kl[mask].sum()) / self.tokens
        self.ratio_max = max(self.ratio_max, float(ratio.max()))
        self.ratio_error = max(self.ratio_error, float((ratio - 1).abs().max()))

    def over(self, ranks: Ranks) -> MinibatchStats:
        """The statistics of all ranks' micro-batches together."""
        if ranks.size == 1:
            return self
        sums = ranks.sum(torch.tensor([getattr(self, name) for name in SUMS], dtype=torch.float64))
        maxima = ranks.max(torch.tensor([getattr(self, name) for name in MAXIMA], dtype=torch.float64))
        numbers = [*zip(SUMS, sums.tolist(), strict=True), *zip(MAXIMA, maxima.tolist(), strict=True)]
        return replace(self, **dict(numbers))


POLICY = [name for name in SUMS if name != "value_loss"]


@checked()
def summarise(stats: list[MinibatchStats]) -> dict[str, float]:
    """The step's metrics: means over its optimiser steps, maxima of maxima, the last learning rates.

    The policy's are there if it learned, the critic's if there is one.
    """
    policy = [s for s in stats if s.policy]
    critic = [s for s in stats if "critic" in s.grad_norm]
    metrics: dict[str, float] = {"optimiser_steps": float(len(stats))}
    if policy:
        metrics |= {name: sum(getattr(s, name) for s in policy) / len(policy) for name in POLICY}
        metrics["ratio_max"] = max(s.ratio_max for s in policy)
        metrics["first_minibatch/ratio_error"] = policy[0].ratio_error
        metrics["first_minibatch/clip_fraction"] = policy[0].clip_fraction
        metrics |= policy[0].extra
    if critic:
        metrics["value_loss"] = sum(s.value_loss for s in critic) / len(critic)
    for who in {name: None for s in stats for name in s.grad_norm}:
        norms = [s.grad_norm[who] for s in stats if who in s.grad_norm]
        metrics[f"grad_norm/{who}"] = sum(norms) / len(norms)
        metrics[f"grad_norm/{who}_not_finite"] = float(sum(not math.isfinite(n) for n in norms))
        rates = [s.lr[who] for s in stats if who in s.lr]
        if rates:  # a trust-region step has none
            metrics[f"lr/{who}"] = rates[-1]
    return metrics
