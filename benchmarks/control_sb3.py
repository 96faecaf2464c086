"""Stable-Baselines3's PPO on the same environments with the same settings, for benchmarks/control.py to stand beside.

    python benchmarks/control_sb3.py FOLDER [SEED ...]     writes FOLDER/sb3.json

Run it in an environment of its own: pip install stable-baselines3 "gymnasium[classic-control]". What of proxlm's
settings SB3 has is set to the same: networks, epochs, minibatches, γ, λ, learning rate falling to 0, normalisation.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

STEPS = {"CartPole-v1": 500_000, "Acrobot-v1": 500_000, "Pendulum-v1": 300_000}


def run(env: str, seed: int) -> dict[str, float]:
    """One run: the mean return of its last 100 training episodes, and its speed."""
    envs = VecNormalize(make_vec_env(env, n_envs=8, seed=seed), gamma=0.99)
    model = PPO(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: 1e-3 * left,
        n_steps=128,
        batch_size=256,
        n_epochs=10,
        gamma=0.99,
        gae_lambda=0.95,
        seed=seed,
        device="cpu",
    )
    began = time.perf_counter()
    model.learn(STEPS[env])
    seconds = time.perf_counter() - began
    episodes = [episode["r"] for episode in model.ep_info_buffer or []]
    return {
        "episode_return": round(mean(episodes), 2),
        "environment_steps": model.num_timesteps,
        "seconds": round(seconds, 1),
        "steps_per_second": round(model.num_timesteps / seconds),
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    file = Path(sys.argv[1]) / "sb3.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for seed in map(int, sys.argv[2:] or "012"):
        for env in STEPS:
            if str(seed) not in found.setdefault(env, {}):
                found[env][str(seed)] = run(env, seed)
                print(env, seed, found[env][str(seed)], flush=True)
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
