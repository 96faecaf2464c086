"""Synthetic run folders with realistic numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from proxlm.config import PPOConfig, SFTConfig, load_config, to_toml
from proxlm.runlog.folder import append_jsonl, write_atomic, write_json_atomic

OPENINGS = [
    "Once upon a time, there was a little girl named Lily.",
    "Tom had a big red ball.\nHe took it to the park.",
    "One day, a cat saw a bird in the tree.",
    "从前有一只小猫，",
]
SENTENCE = "She was very happy and sad to play with the dog . He said yes no , and they all went home"
WORDS = ["", *SENTENCE.split()]


def ppo_row(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    done = step / steps
    noise = rng.gauss(0, 0.03)
    generate, score, prepare, update = (abs(rng.gauss(m, m / 10)) for m in (1.1, 0.05, 0.4, 1.6))
    return {
        "step": step,
        "time": round(3.2 * step, 3),
        "reward": 0.26 + 0.55 * (1 - math.exp(-4 * done)) + noise,
        "reward/sentiment": 0.3 + 0.5 * done + noise,
        "reward/length": -0.04 * done + noise / 4,
        "reward_std": 0.41 - 0.2 * done,
        "reward_failed": 0.0,
        "kl": 8 * done**1.2 + abs(noise) * 5,
        "kl_coef": 0.05,
        "entropy": 2.1 - 0.7 * done + noise,
        "policy_loss": -0.02 + noise / 5,
        "value_loss": 0.4 * math.exp(-3 * done) + abs(noise),
        "clip_fraction": 0.08 + noise / 2,
        "approx_kl": 0.012 + noise / 10,
        "ratio_mean": 1 + noise / 30,
        "ratio_max": 1.6 + abs(noise) * 10,
        "explained_variance": 0.8 * (1 - math.exp(-5 * done)) + noise,
        "response_length": 28 + 3 * done + noise * 20,
        "eos_share": 0.1 + 0.3 * done,
        "advantage_mean": noise / 10,
        "return_mean": 0.3 + 0.4 * done,
        "value_mean": 0.28 + 0.4 * done + noise / 3,
        "grad_norm/policy": 0.9 + noise * 4,
        "grad_norm/critic": 2.4 + noise * 9,
        "lr/policy": 1e-5 * (1 - done),
        "lr/critic": 1e-4 * (1 - done),
        "rollout_gap": 1e-6 * (1 + noise),
        "optimiser_steps": 16.0,
        "time/generate": generate,
        "time/score": score,
        "time/prepare": prepare,
        "time/update": update,
        "time/step": generate + score + prepare + update,
        "time/cpu": 0.98 * (generate + score + prepare + update),
        "tokens_per_second": 1900 / (generate + score + prepare + update),
        "tokens_per_second/generate": 1900 / generate,
        "tokens_per_second/update": 1900 / update,
        "memory_gb": 0.8 + 0.05 * done,
    }


def sample_row(step: int, prompt_id: int, rng: random.Random, steps: int) -> dict[str, Any]:
    tokens = [
        rng.choice([f" {word}" if word else ".\n" for word in WORDS]) for _ in range(rng.randint(18, 32))
    ]
    reward = max(-1.0, min(1.0, 0.2 + 0.6 * step / steps + rng.gauss(0, 0.3)))
    kl = [rng.gauss(0.2 * step / steps, 0.3) for _ in tokens]
    return {
        "step": step,
        "prompt_id": prompt_id,
        "prompt": OPENINGS[prompt_id % len(OPENINGS)],
        "response": "".join(tokens),
        "finish": rng.choice(["eos", "length"]),
        "reward": round(reward, 5),
        "components": {"sentiment": round(reward, 5), "length": -0.02},
        "tokens": tokens,
        "per_token": {
            "logprob": [round(-abs(rng.gauss(0, 2)), 5) for _ in tokens],
            "kl": [round(k, 5) for k in kl],
            "reward": [round(-0.05 * k, 5) for k in kl[:-1]] + [round(reward, 5)],
            "value": [round(0.4 + rng.gauss(0, 0.1), 5) for _ in tokens],
            "advantage": [round(rng.gauss(0, 1), 5) for _ in tokens],
        },
    }


def evaluation(rng: random.Random) -> dict[str, Any]:
    def model(name: str, reward: float, kl: float) -> dict[str, Any]:
        samples = []
        for i in range(6):
            row = sample_row(100 if name == "after" else 1, i, rng, 100)
            samples.append({key: row[key] for key in ("prompt_id", "prompt", "response", "reward")})
        return {
            "name": name,
            "model": f"models/{name}",
            "metrics": {
                "reward": {"mean": reward, "low": reward - 0.05, "high": reward + 0.05},
                "kl": {"mean": kl, "low": kl - 0.2 * kl, "high": kl + 0.2 * kl},
                "length": {"mean": 30.1 + kl, "low": 29.2 + kl, "high": 31.0 + kl},
                "eos_share": {"mean": 0.1 + kl / 30},
                "distinct_2": {"mean": 0.61 - kl / 100},
                "perplexity": {"mean": 5.3 + kl},
            },
            "samples": samples,
        }

    return {
        "prompts": 64,
        "seed": 0,
        "metrics": {"reward": "mean reward of a response", "kl": "nats a response, to the reference"},
        "models": [model("before", 0.26, 0.0), model("after", 0.81, 6.4)],
    }


def ppo_run(folder: Path, steps: int = 60, with_texts: bool = True) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True)
    config = load_config(
        PPOConfig, overrides={"model.policy": "stories260K", "data.prompts": "p.jsonl", "ppo.steps": steps}
    )
    write_atomic(folder / "config.toml", to_toml(config))
    append_jsonl(folder / "metrics.jsonl", [ppo_row(step, steps, rng) for step in range(1, steps + 1)])
    if with_texts:
        rows = [sample_row(s, 4 * s + i, rng, steps) for s in range(1, steps + 1) for i in range(4)]
        append_jsonl(folder / "samples.jsonl", rows)
        write_json_atomic(folder / "evaluation.json", evaluation(rng))
    return folder


def sft_run(folder: Path, steps: int = 120) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True)
    config = load_config(
        SFTConfig, overrides={"model.policy": "stories260K", "text.train": ["t.jsonl"], "train.steps": steps}
    )
    write_atomic(folder / "config.toml", to_toml(config))
    for step in range(1, steps + 1):
        loss = 1.5 + 5 * math.exp(-step / 20)
        row: dict[str, Any] = {"step": step, "time": 0.2 * step, "loss": loss + rng.gauss(0, 0.1)}
        if step % 20 == 0:
            row["validation_loss"] = loss + 0.1
        row |= {"lr": 1e-4, "grad_norm": 0.7 + rng.random(), "tokens_per_second": 40000.0, "memory_gb": 1.2}
        append_jsonl(folder / "metrics.jsonl", [row])
    return folder


def edit(file: Path, line: int, **changes: Any) -> None:
    """Change fields of one row of a JSONL file; the first line is 1."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **changes})
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
