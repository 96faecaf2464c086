"""An LSTM beside a Transformer of equal size on Tiny Shakespeare, and PPO on the LSTM.

    python benchmarks/recurrent.py ../shared/data/tinyshakespeare/input.txt OUTPUT_FOLDER

The first 90% of the text trains, the next 5% choose learning rate and step, the last 5% are the test; the tokenizer
(512 tokens of byte-level BPE) knows the training part alone. Both models see the same tokens, with each of the same
three learning rates on seed 0; the one with the lowest validation loss is run on seed 1 as well. PPO
raises VADER's sentiment of the LSTM's continuations of line beginnings, on three seeds. A finished run is not run
again. Writes recurrent.json and recurrent.md into benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import torch

from jobs import evaluated, run_job
from proxlm.config import ModelSettings
from proxlm.data.supervised import pretrain_blocks
from proxlm.models.load import load_language_model
from proxlm.runlog.folder import read_jsonl
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.objective import next_token_losses

RESULTS = Path(__file__).parent / "results"
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"new.hidden": 192, "new.layers": 2},
    "llama": {"new.hidden": 128, "new.layers": 3, "new.heads": 4, "new.intermediate": 372},
}
RATES, SEEDS = (0.001, 0.003, 0.01), (0, 1, 2)
BLOCK = 128
PRETRAIN = {
    "new.vocabulary": 512,
    "train.block": BLOCK,
    "train.batch_tokens": 2048,
    "train.micro_batch_tokens": 2048,
    "train.validate_every": 100,
    "train.patience": 0,
    "optim.schedule": "cosine",
    "optim.warmup": 20,
}
PPO = {
    "model.critic": "shared",
    "reward.use": "sentiment",
    "rollout.max_new_tokens": 24,
    "ppo.batch_size": 64,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "ppo.kl_coef": 0.05,
    "optim.policy.lr": 0.001,
    "optim.critic.lr": 0.003,
    "data.eval_count": 128,
}
COMMON = {"run.threads": 1, "run.save_every": 0, "model.device": "cpu"}


def split(text: str, folder: Path) -> dict[str, str]:
    """The three parts, cut at line ends, as files and as texts."""
    one, two = (text.index("\n", int(share * len(text))) + 1 for share in (0.9, 0.95))
    parts = {"train": text[:one], "validation": text[one:two], "test": text[two:]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    for name, count in (("train", 512), ("test", 128)):
        found = {" ".join(line.split()[:4]) for line in parts[name].splitlines() if len(line.split()) >= 6}
        chosen = random.Random(0).sample(sorted(found), count)
        (folder / f"prompts-{name}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return parts


def pretrained(kind: str, rate: float, seed: int, steps: int, output: Path, test: str) -> dict[str, float]:
    """One pretraining run: validation loss of its best weights, and what they make of the test part."""
    settings = {
        "new.type": kind,
        **SHAPES[kind],
        **PRETRAIN,
        "text.train": json.dumps([str(output / "train.txt")]),
        "text.validation": json.dumps([str(output / "validation.txt")]),
        "train.steps": steps,
        "optim.lr": rate,
        "run.seed": seed,
    }
    folder = run_job("pretrain", output / f"{kind}-{rate:g}-{seed}", COMMON | settings)
    model = load_language_model(ModelSettings(policy=str(folder / "policy"), device="cpu"))
    blocks = Examples.from_blocks(pretrain_blocks(model.tokenizer, [test], BLOCK))
    log = read_jsonl(folder / "metrics.jsonl")
    return {
        "validation_loss": min(row["validation_loss"] for row in log if "validation_loss" in row),
        "test_perplexity": math.exp(next_token_losses(model, blocks, 4096)[0]),
        "test_tokens": len(blocks) * (BLOCK - 1),
        "train_tokens": steps * PRETRAIN["train.batch_tokens"],  # type: ignore[operator]
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "seconds": sum(row["time/step"] for row in log),
    }


def tune_rates(output: Path, steps: int, test: str) -> dict[str, Any]:
    """Each model with each rate on one seed."""
    found: dict[str, Any] = {}
    for kind in SHAPES:
        tuning = {rate: pretrained(kind, rate, SEEDS[0], steps, output, test) for rate in RATES}
        best = min(tuning, key=lambda rate, t=tuning: t[rate]["validation_loss"])  # type: ignore[misc]
        found[kind] = {"tuning": tuning, "rate": best}
        print(kind, json.dumps(found[kind]), flush=True)
    return found


def tuned(policy: Path, steps: int, output: Path) -> list[dict[str, Any]]:
    """PPO on each seed: held-out numbers before and after."""
    result = []
    for seed in SEEDS:
        settings = {
            **PPO,
            "model.policy": policy,
            "data.prompts": output / "prompts-train.txt",
            "data.eval_prompts": output / "prompts-test.txt",
            "ppo.steps": steps,
            "run.seed": seed,
        }
        folder = run_job("ppo", output / f"ppo-{seed}", COMMON | settings)
        models = evaluated(folder)
        numbers = {m["name"]: {k: m["metrics"][k] for k in ("reward", "kl", "distinct_2")} for m in models}
        log = read_jsonl(folder / "metrics.jsonl")
        numbers["ratio_error"] = max(row["first_minibatch/ratio_error"] for row in log)
        numbers["rollout_gap"] = max(row["rollout_gap"] for row in log)
        numbers["seconds"] = log[-1]["time"]
        result.append({"seed": seed, **numbers})
        print("ppo", json.dumps(result[-1]), flush=True)
    return result


def page(found: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    rates = " | ".join(f"lr {rate:g}" for rate in RATES)
    lines = [
        f"# LSTM and Transformer on Tiny Shakespeare, {found['steps']} steps",
        "",
        f"| model | parameters | {rates} | chosen | test perplexity, seeds 0, 1 | seconds |",
        "| --- " * (5 + len(RATES)) + "|",
    ]
    for kind, one in found["models"].items():
        losses = " | ".join(f"{one['tuning'][rate]['validation_loss']:.4f}" for rate in RATES)
        tests = ", ".join(f"{run['test_perplexity']:.2f}" for run in one["seeds"])
        seconds = ", ".join(f"{run['seconds']:.0f}" for run in one["seeds"])
        size = one["seeds"][0]["parameters"]
        lines.append(f"| {kind} | {size:,} | {losses} | {one['rate']:g} | {tests} | {seconds} |")
    lines += [
        "",
        "Under each lr: validation loss (nats per token), seed 0. Perplexity: per token, of the last 5% of the text.",
        "",
        "## PPO on the LSTM: VADER's sentiment",
        "",
        "| seed | reward before | reward after | KL | distinct-2 before | after | worst ratio error | seconds |",
        "| --- " * 8 + "|",
    ]
    for one in found["ppo"]:
        b, a = one["before"], one["after"]
        cells = [
            f"{m['reward']['mean']:.3f} ± {m['reward']['mean'] - m['reward']['low']:.3f}" for m in (b, a)
        ]
        lines.append(
            f"| {one['seed']} | {cells[0]} | {cells[1]} | {a['kl']['mean']:.2f} | {b['distinct_2']['mean']:.2f} |"
            f" {a['distinct_2']['mean']:.2f} | {one['ratio_error']:g} | {one['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining at the chosen rate")
    parser.add_argument("--ppo-steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    parts = split(given.text.read_text(encoding="utf-8"), given.output)
    models = tune_rates(given.output, given.steps, parts["test"])
    policy = given.output / f"lstm-{models['lstm']['rate']:g}-{SEEDS[0]}" / "policy"
    found = {"steps": given.steps, "models": models, "ppo": tuned(policy, given.ppo_steps, given.output)}
    for seed in SEEDS[: given.seeds]:
        for kind, one in models.items():
            numbers = pretrained(kind, one["rate"], seed, given.steps, given.output, parts["test"])
            one.setdefault("seeds", []).append(numbers)
    (RESULTS / "recurrent.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "recurrent.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
