"""A learned proxy against a gold reward over √KL (the setting of Gao, Schulman and Hilton 2022).

    python benchmarks/overoptimisation.py MODEL_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--labels 256]

The gold reward is a held-out classifier, which stands for a reader who wants happy stories that are stories: the
network of the model with a score head, trained on VADER's scores of `gold-labels` of the model's continuations and on
as many spoilt copies of them (a few words repeated, words shuffled, words of many stories mixed), whose score is the
lowest. For each seed a proxy of the same kind is trained on gold's scores of only `labels` other continuations; it
has never seen a spoilt text, as no labeller of a model's own samples has. Then PPO raises the proxy's score with no
KL penalty, while gold (and VADER) are only watched. Writes gold/, proxy-SEED/, run-SEED/, overoptimisation.json.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxlm import load_config
from proxlm.config import RewardSettings
from proxlm.data.prompts import load_prompts
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.jobs.ppo import main as run_ppo
from proxlm.models.load import load_language_model
from proxlm.rewards import build_reward
from proxlm.runlog.folder import read_jsonl
from proxlm.types import Rollout

RECIPE = "recipes/stories-sentiment.toml"


def sampled(model_folder: str, count: int, seed: int) -> tuple[Any, Rollout]:
    """The model and `count` of its continuations of training prompts."""
    config = load_config("ppo", RECIPE, {"model.policy": model_folder, "run.seed": seed})
    model = load_language_model(config.model)
    prompts = load_prompts(config.data, model.tokenizer, 256, "train", seed).prompts
    drawn = [prompts[i % len(prompts)] for i in range(count)]
    engine = NativeEngine(model, config.rollout)
    return model, generate(engine, drawn, config.rollout, seed=seed, step=0, stream=7)


def spoilt(texts: list[str], seed: int) -> list[str]:
    """Each text with its words repeated, shuffled, or replaced by words of other texts, in turn."""
    draw = random.Random(seed)
    every_word = [word for text in texts for word in text.split()]
    result = []
    for i, text in enumerate(texts):
        words = text.split() or ["a"]
        if i % 3 == 0:
            size = draw.randint(1, 8)
            first = draw.randrange(max(1, len(words) - size + 1))
            words = (words[first : first + size] * len(words))[: len(words)]
        elif i % 3 == 1:
            draw.shuffle(words)
        else:
            words = draw.choices(every_word, k=len(words))
        result.append(" " + " ".join(words))
    return result


def train_classifier(
    model_folder: str, folder: Path, labels: int, seed: int, label: RewardSettings, epochs: int, spoil: bool
) -> float:
    """Fit a one-output classifier to the scores that `label` gives, with `spoil` also to spoilt copies of the texts
    with the lowest score. Returns its correlation with them on a quarter more continuations that it has not seen."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    model, rollout = sampled(model_folder, labels + labels // 4, seed)
    scores = build_reward(label)(rollout).total
    prompts, texts = [p.text for p in rollout.prompts], list(rollout.texts)
    if spoil:  # in front, among the texts to be learnt
        prompts, texts = prompts[:labels] + prompts, spoilt(texts[:labels], seed) + texts
        scores = torch.cat([torch.full((labels,), float(scores.min())), scores])
        labels *= 2
    rows = [model.tokenizer(p + text)["input_ids"] for p, text in zip(prompts, texts, strict=True)]
    network = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    network.config.pad_token_id = model.tokenizer.pad_token_id
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    target = (scores - scores[:labels].mean()) / scores[:labels].std()
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


def reward_model(folder: Path) -> RewardSettings:
    return RewardSettings(use="reward_model", args={"path": str(folder), "truncate": True})


def score(network: Any, rows: list[list[int]]) -> Tensor:
    """Rows of token ids → scores [b]."""
    pad, longest = network.config.pad_token_id, max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return network(input_ids=ids, attention_mask=mask).logits.squeeze(-1)


def optimise(
    model_folder: str, gold: Path, proxy: Path, folder: Path, seed: int, steps: int
) -> list[dict[str, float]]:
    """PPO on the proxy; returns step, KL, proxy, gold and VADER of every step."""
    settings = {
        "model.policy": model_folder,
        "reward.use": "",
        "reward.terms.proxy.use": "reward_model",
        "reward.terms.proxy.args.path": str(proxy),
        "reward.terms.proxy.args.truncate": True,
        "reward.terms.gold.use": "reward_model",
        "reward.terms.gold.args.path": str(gold),
        "reward.terms.gold.args.truncate": True,
        "reward.terms.gold.weight": 0.0,
        "reward.terms.vader.use": "sentiment",
        "reward.terms.vader.weight": 0.0,
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
        "run.threads": 1,
    }
    run_ppo(load_config("ppo", RECIPE, settings))
    rows = read_jsonl(folder / "metrics.jsonl")
    names = {"step": "step", "kl": "kl", **{n: f"reward/{n}" for n in ("proxy", "gold", "vader")}}
    return [{name: r[key] for name, key in names.items()} for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", type=int, default=256)
    parser.add_argument("--gold-labels", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gold = given.output / "gold"
    note = given.output / "gold-with-vader.json"
    if not note.exists():
        sentiment = RewardSettings(use="sentiment")
        known = train_classifier(given.model, gold, given.gold_labels, 1000, sentiment, epochs=5, spoil=True)
        note.write_text(json.dumps(known), encoding="utf-8")
    known = json.loads(note.read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for seed in given.seeds:
        proxy = given.output / f"proxy-{seed}"
        told_by = reward_model(gold)
        agreed = train_classifier(given.model, proxy, given.labels, seed, told_by, epochs=6, spoil=False)
        print(f"gold with VADER {known:.3f}; seed {seed}: proxy with gold {agreed:.3f}", flush=True)
        rows = optimise(given.model, gold, proxy, given.output / f"run-{seed}", seed, given.steps)
        found[str(seed)] = {"correlation": agreed, "rows": rows}
        told = {"gold_labels": given.gold_labels, "labels": given.labels, "gold_with_vader": known}
        text = json.dumps({**told, "seeds": found}, indent=1)
        (given.output / "overoptimisation.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
