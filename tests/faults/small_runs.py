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
# The reward's calls before this one are the trial, and the evaluation of sampled and of greedy responses.
FIRST_STEP = 4
SENDS = """
import os, signal, time
calls = 0
def score(completions):
    global calls
    calls += 1
    if calls == {call}:
        for seconds in {waits}:
            os.kill(os.getpid(), signal.{name})
            time.sleep(seconds)
    return [sum(c in "aeiou" for c in x.text) / 20 for x in completions]
"""
PPO = ["ppo", "recipe.toml"]
# For a resume with a reward that no longer sends a signal or raises.
ACCEPT = ["--run.accept-changes", "true"]
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


def reward_that_sends(
    place: Path, name: str = "SIGTERM", *, call: int = 0, waits: tuple[float, ...] = (0.7,)
) -> list[str]:
    """A reward equal to reward.py's, whose call number `call` sends its process a signal; returns how to use it.

    call 0: none does. waits: one signal for each, with so many seconds after it; two at once would count as one.
    """
    (place / "sends.py").write_text(SENDS.format(name=name, call=call, waits=waits), encoding="utf-8")
    return ["--reward.use", "sends.py:score"]
