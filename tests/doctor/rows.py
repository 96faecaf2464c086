"""Hand-made metric rows of a healthy run, to be made ill one number at a time."""

from __future__ import annotations

import random
from typing import Any

from proxlm.doctor import Facts

# Of the demo, more or less.
FACTS = Facts(
    responses=64,
    updates=8,
    max_new_tokens=32,
    lr=3e-4,
    loss="ppo",
    kl_coef=0.05,
    entropy_coef=0.0,
    precision="float32",
)


def healthy(step: int, **changes: Any) -> dict[str, Any]:
    """A row of a run that learns slowly, with noise that depends on the step alone."""
    noise = random.Random(step).gauss
    row = {
        "step": step,
        "time": 2.0 * step,
        "reward": 0.2 + 0.004 * step + noise(0, 0.02),
        "reward_std": 0.35,
        "reward_failed": 0.0,
        "score": 0.2 + 0.004 * step + noise(0, 0.02),
        "kl": min(5.0, 0.05 * step),
        "kl_per_token": min(0.3, 0.003 * step),
        "entropy": 2.5 - min(1.0, 0.01 * step),
        "value_mean": 0.3,
        "return_mean": 0.32,
        "advantage_mean": 0.02,
        "advantage_std": 0.25,
        "explained_variance": noise(0.15, 0.1),
        "response_length": noise(20, 1),
        "eos_share": 0.9,
        "ended_share": 0.9,
        "rollout_gap": 2e-5,
        "repetition": 0.05,
        "reward_length_correlation": noise(0, 0.2),
        "policy_loss": -0.01,
        "value_loss": 0.05,
        "ratio_mean": 1.0,
        "ratio_max": abs(noise(5, 3)),
        "clip_fraction": abs(noise(0.08, 0.03)),
        "approx_kl": abs(noise(0.01, 0.003)),
        "optimiser_steps": 8.0,
        "grad_norm/policy": abs(noise(0.9, 0.2)),
        "grad_norm/critic": abs(noise(0.5, 0.1)),
        "grad_norm/policy_not_finite": 0.0,
        "grad_norm/critic_not_finite": 0.0,
        "lr/policy": 3e-4,
        "lr/critic": 1e-3,
        "kl_coef": 0.05,
        "evaluation/reward": 0.2 + 0.004 * step + noise(0, 0.02),
        "evaluation/greedy/reward": 0.25 + 0.004 * step + noise(0, 0.02),
        "engine_weight/dropped_share": 0.01,
        "dropped_mass": 0.05,
    }
    return row | changes


def run_of(count: int, **changes: Any) -> list[dict[str, Any]]:
    """`count` rows with the same changes in each."""
    return [healthy(step, **changes) for step in range(1, count + 1)]
