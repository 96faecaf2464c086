"""A learned proxy against a gold reward over √KL (the setting of Gao, Schulman and Hilton 2022).

    python benchmarks/overoptimisation.py MODEL_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--labels 256]

For each seed: the model writes `labels` continuations, VADER (the gold reward) scores them, a small reward model
(the same network with a score head) learns those scores; then PPO raises the reward model's score with no KL
penalty, while the gold reward is only watched. Writes proxy-SEED/, run-SEED/ and overoptimisation.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm import load_config, run_ppo
from proxlm.data.prompts import load_prompts
from proxlm.models.load import load_language_model
from proxlm.rewards import build_reward
from proxlm.rollout.native import generate
from proxlm.types import Rollout

RECIPE = "recipes/stories-sentiment.toml"


def labelled(model_folder: str, labels: int, seed: int) -> tuple[Any, Rollout, Tensor]:
    """The model, `labels` + a quarter more of its continuations, and their gold scores."""
    config = load_config("ppo", RECIPE, {"model.policy": model_folder, "run.seed": seed})
    model = load_language_model(config.model)
    prompts = load_prompts(config.data, model.tokenizer, 256, "train", seed).prompts
    wanted = labels + labels // 4
    drawn = [prompts[i % len(prompts)] for i in range(wanted)]
    rollout = generate(model, drawn, config.rollout, seed=seed, step=0, stream=7)
    return model, rollout, build_reward(config.reward)(rollout).total


def train_proxy(model_folder: str, folder: Path, labels: int, seed: int, epochs: int = 6) -> float:
    """Fit a one-output classifier to the gold scores; returns its correlation with gold on unseen continuations."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    model, rollout, gold = labelled(model_folder, labels, seed)
    rows = [
        model.tokenizer(p.text + text)["input_ids"]
        for p, text in zip(rollout.prompts, rollout.texts, strict=True)
    ]
    network = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    network.config.pad_token_id = model.tokenizer.pad_token_id
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    target = (gold - gold[:labels].mean()) / gold[:labels].std()
    for _ in range(epochs):
        for batch in torch.randperm(labels).split(16):
            loss = nn.functional.mse_loss(score(network, [rows[i] for i in batch]), target[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
    with torch.no_grad():
        unseen = score(network.eval(), rows[labels:])
    network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return float(torch.corrcoef(torch.stack([unseen, target[labels:]]))[0, 1])


def score(network: Any, rows: list[list[int]]) -> Tensor:
    """Rows of token ids → scores [b]."""
    pad, longest = network.config.pad_token_id, max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return network(input_ids=ids, attention_mask=mask).logits.squeeze(-1)


def optimise(model_folder: str, proxy: Path, folder: Path, seed: int, steps: int) -> list[dict[str, float]]:
    """PPO on the proxy; returns step, KL, proxy and gold of every step."""
    settings = {
        "model.policy": model_folder,
        "reward.use": "",
        "reward.terms.proxy.use": "reward_model",
        "reward.terms.proxy.args.path": str(proxy),
        "reward.terms.proxy.args.truncate": True,
        "reward.terms.gold.use": "sentiment",
        "reward.terms.gold.weight": 0.0,
        "rollout.max_new_tokens": 24,
        "ppo.steps": steps,
        "ppo.batch_size": 64,
        "ppo.minibatches": 1,
        "ppo.kl_coef": 0.0,
        "optim.policy.schedule": "constant",
        "optim.policy.lr": 1e-4,
        "run.seed": seed,
        "run.folder": str(folder),
        "run.save_every": 0,
        "run.tensorboard": False,
        "run.threads": 1,
    }
    run_ppo(load_config("ppo", RECIPE, settings))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {"step": r["step"], "kl": r["kl"], "proxy": r["reward/proxy"], "gold": r["reward/gold"]} for r in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    found = {}
    for seed in given.seeds:
        proxy = given.output / f"proxy-{seed}"
        correlation = train_proxy(given.model, proxy, given.labels, seed)
        print(
            f"seed {seed}: the proxy's correlation with gold on unseen continuations is {correlation:.3f}",
            flush=True,
        )
        rows = optimise(given.model, proxy, given.output / f"run-{seed}", seed, given.steps)
        found[str(seed)] = {"correlation": correlation, "rows": rows}
        text = json.dumps({"labels": given.labels, "seeds": found}, indent=1)
        (given.output / "overoptimisation.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
