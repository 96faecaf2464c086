"""A folder with a tiny model, prompts and a reward, in which a PPO run and a fine-tuning take a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"
RECIPE = """
[model]
policy = "model"
device = "cpu"
[data]
prompts = "prompts.jsonl"
eval_count = 2
[rollout]
max_new_tokens = 8
[reward]
use = "reward.py:score"
[ppo]
steps = 4
batch_size = 4
epochs = 1
minibatches = 2
[optim.policy]
lr = 1e-3
[run]
folder = "run"
save_every = 1
tensorboard = false
report = false
threads = 1
"""
PPO = ["ppo", "recipe.toml"]
SFT = [
    "sft", "--model.policy", "model", "--text.train", "pairs.jsonl", "--train.batch-tokens", "60",
    "--train.steps", "6", "--train.validate-every", "2", "--run.save-every", "1", "--run.threads", "1",
    "--model.device", "cpu", "--run.tensorboard", "false", "--run.report", "false", "--run.folder", "sft-run",
]  # fmt: skip


@pytest.fixture
def tiny_place(tokenizer, tmp_path, monkeypatch) -> Path:
    """The folder, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    prompts = [json.dumps({"prompt": f"{text[:12]} {i}"}) for i in range(4) for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    pairs = [json.dumps({"prompt": text[:6], "response": text[6:20]}) for text in TEXTS * 4]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    (tmp_path / "reward.py").write_text(REWARD, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path
