"""The settings of `proxlm control`: an environment, a small network, and PPO for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from proxlm.config.optimiser import OptimiserSettings, OptimisersSettings
from proxlm.config.setting import setting


@dataclass(frozen=True)
class GymSettings:
    """Gymnasium environments, several side by side."""

    id: str = setting("", "Gymnasium's name of the environment, or module:Name (also: proxlm control ID)")
    args: dict[str, Any] = setting(factory=dict, help="keyword arguments of gymnasium.make")
    count: int = setting(8, "environments side by side", ge=1)
    steps: int = setting(
        500_000, "environment steps in all, of all environments together", ge=1, on_resume="free"
    )
    time_limit: int = setting(0, "steps after which an episode is truncated; 0: the environment's own", ge=0)
    normalise_observations: bool = setting(True, "observations to mean 0, std 1 of all seen so far")
    normalise_rewards: bool = setting(True, "rewards divided by the std of the discounted returns so far")
    clip: float = setting(10.0, "normalised observations and rewards are cut to ± this", gt=0)


@dataclass(frozen=True)
class NetworkSettings:
    """The policy and the critic: tanh layers, orthogonal weights."""

    width: int = setting(64, "units of a layer", ge=1)
    layers: int = setting(2, "layers before the heads", ge=1)
    lstm: int = setting(0, "units of an LSTM after the layers, a memory within an episode; 0: none", ge=0)
    critic: Literal["shared", "separate"] = setting(
        "separate", "value head on the policy's layers (shared), or on layers of its own"
    )
    log_std: float = setting(0.0, "continuous actions: the first log standard deviation", ge=-20, le=2)


@dataclass(frozen=True)
class ControlPPOSettings:
    """PPO with GAE on environment steps."""

    horizon: int = setting(128, "steps of each environment per PPO step", ge=1)
    epochs: int = setting(10, "passes over a PPO step's data", ge=1)
    minibatches: int = setting(4, "optimiser steps per pass", ge=1)
    gamma: float = setting(0.99, "discount factor", ge=0, le=1)
    lam: float = setting(0.95, "GAE's λ: 0 one-step, 1 Monte Carlo (Schulman et al. 2015)", ge=0, le=1)
    clip_low: float = setting(0.2, "ε below 1 in the clipped ratio", ge=0, lt=1)
    clip_high: float = setting(0.2, "ε above 1 in the clipped ratio", ge=0)
    dual_clip: float = setting(0.0, "with A < 0 the loss is at most this times |A|; 0: off", ge=0)
    clip_value: float = setting(0.0, "how far a value may move before its loss is clipped; 0: no clip", ge=0)
    value_coef: float = setting(0.5, "factor of the value loss", ge=0)
    entropy_coef: float = setting(0.0, "factor of the entropy bonus", ge=0)
    whiten_advantages: bool = setting(True, "a PPO step's advantages to mean 0, variance 1")
    max_log_ratio: float = setting(20.0, "log-ratios are clamped to ± this before exp", gt=0)
    target_kl: float = setting(0.0, "end a step's passes once approxKL exceeds this; 0: never", ge=0)


def control_optimisers() -> OptimisersSettings:
    """Small networks take a thousand times a language model's learning rate; it falls to 0."""
    optimiser = OptimiserSettings(lr=1e-3, schedule="linear", final=0.0, max_grad_norm=0.5)
    return OptimisersSettings(policy=optimiser, critic=optimiser)
