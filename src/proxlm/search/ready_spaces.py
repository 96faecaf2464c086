"""Spaces that are there by name, around the recipe's own settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxlm.config import ControlConfig, PPOConfig

# A rate is searched from a tenth to ten times the recipe's.
_RATE = 10.0


def ppo_space(base: Any) -> dict[str, Any]:
    """The settings of PPO by the letters of the literature: α, β, γ, λ, ε, K."""
    space: dict[str, Any] = {
        "optim.policy.lr": _around(base.optim.policy.lr),  # α, of the policy
        "ppo.gamma": {"low": 0.95, "high": 1.0},  # γ
        "ppo.lam": {"low": 0.8, "high": 1.0},  # λ
        "ppo.clip_low": {"low": 0.05, "high": 0.4, "also": ["ppo.clip_high"]},  # ε
        "ppo.epochs": {"low": 1, "high": 8},  # K
    }
    if isinstance(base, PPOConfig):
        space["ppo.kl_coef"] = {"low": 0.005, "high": 0.5, "log": True}  # β
    return space


def supervised_space(base: Any) -> dict[str, Any]:
    """The settings of supervised training that matter most: rate, weight decay, batch."""
    tokens = base.train.batch_tokens
    return {
        "optim.lr": _around(base.optim.lr),
        "optim.weight_decay": {"low": 0.0, "high": 0.2},
        "train.batch_tokens": [max(1, tokens // 2), tokens, tokens * 2],
    }


def _around(rate: float) -> dict[str, Any]:
    return {"low": rate / _RATE, "high": rate * _RATE, "log": True}


def ready_space(name: str, base: Any) -> dict[str, Any] | None:
    """The table of a ready space for a job's settings; None: there is none of that name for this job."""
    is_policy = isinstance(base, PPOConfig | ControlConfig)
    spaces: dict[str, Callable[[Any], dict[str, Any]]] = (
        {"ppo": ppo_space} if is_policy else {"supervised": supervised_space}
    )
    return spaces[name](base) if name in spaces else None
