"""Every command on encoder–decoders, through the command line's own entry: a new model, then PPO on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

PAIRS = [
    ("The cat", "猫"),
    ("A dog", "狗"),
    ("The moon", "月"),
    ("A red ball", "红球"),
    ("Hello", "你好"),
] * 6
REWARD = "def score(completions):\n    return [len(set(x.text) & set(x.fields['response'])) for x in completions]\n"
NEW = [
    "--scratch.hidden", "32", "--scratch.layers", "1", "--scratch.heads", "2", "--scratch.vocabulary", "280",
    "--scratch.context", "40", "--text.train", "pairs.jsonl", "--train.batch-tokens", "200",
    "--train.validate-every", "10", "--optim.lr", "1e-2", "--optim.schedule", "constant", "--run.threads", "1",
    "--model.device", "cpu", "--run.tensorboard", "false",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": a, "response": b}, ensure_ascii=False) for a, b in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "reward.py").write_text(REWARD, encoding="utf-8")
    return tmp_path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_new_model_from_pairs_then_ppo_evaluate_generate(place, capsys, family):
    sft = ["sft", "--scratch.type", family, *NEW, "--train.steps", "30"]
    assert main([*sft, "--run.folder", "base"]) == 0
    metrics = rows(place / "base" / "metrics.jsonl")
    assert metrics[-1]["validation_loss"] < metrics[0]["loss"] - 1
    tokenizer = AutoTokenizer.from_pretrained(place / "base" / "policy")
    assert tokenizer("The cat").input_ids[-1] == tokenizer.eos_token_id
    assert AutoModelForSeq2SeqLM.from_pretrained(place / "base" / "policy").config.model_type == family
    ppo = [
        "ppo", "--model.policy", "base/policy", "--model.device", "cpu", "--data.prompts", "pairs.jsonl",
        "--data.eval-count", "2", "--rollout.max-new-tokens", "8", "--reward.use", "reward.py:score", "--ppo.steps",
        "4", "--ppo.batch-size", "8", "--ppo.minibatches", "2", "--run.threads", "1", "--run.tensorboard", "false",
        "--optim.policy.schedule", "constant", "--optim.critic.schedule", "constant",
    ]  # fmt: skip
    assert main([*ppo, "--run.folder", "run"]) == 0
    assert all(row["first_minibatch/ratio_error"] == 0.0 for row in rows(place / "run" / "metrics.jsonl"))
    assert main([*ppo, "--run.folder", "parts", "--ppo.steps", "2"]) == 0
    assert main([*ppo, "--run.folder", "parts", "--resume"]) == 0
    pair = [AutoModelForSeq2SeqLM.from_pretrained(place / name / "policy") for name in ("run", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))
    assert main(["evaluate", "run", "--output", "table.json"]) == 0
    assert len(json.loads((place / "table.json").read_text())["models"]) == 2
    capsys.readouterr()
    assert main(["generate", "run", "--prompt", "The cat", "--rollout.temperature", "0"]) == 0
    one = capsys.readouterr().out
    assert main(["generate", "run", "--data.prompts", "pairs.jsonl", "--rollout.temperature", "0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["response"] == one.rstrip("\n")


def test_a_new_model_resumes_exactly_and_keeps_its_tokenizer(place):
    # A warm-up and a schedule that do not depend on the number of steps.
    sft = ["sft", "--scratch.type", "t5", *NEW, "--optim.warmup", "4", "--optim.schedule", "constant"]
    assert main([*sft, "--run.folder", "whole", "--train.steps", "20"]) == 0
    assert main([*sft, "--run.folder", "parts", "--train.steps", "10"]) == 0
    assert main([*sft, "--run.folder", "parts", "--train.steps", "20", "--resume"]) == 0
    pair = [AutoModelForSeq2SeqLM.from_pretrained(place / name / "policy") for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))
    assert (
        main(
            ["sft", "--model.policy", "whole/policy", *NEW[10:], "--run.folder", "more", "--train.steps", "5"]
        )
        == 0
    )


@pytest.mark.parametrize("family", ["llama", "lstm"])
def test_a_new_causal_model_from_pairs(place, family):
    assert main(["sft", "--scratch.type", family, *NEW, "--train.steps", "10", "--run.folder", "base"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(place / "base" / "policy")
    assert tokenizer("The cat").input_ids[0] == tokenizer.bos_token_id


@pytest.fixture
def bart(place, tokenizer) -> Path:
    """A BART whose sides hold 128 tokens each, and prompts for it."""
    save_language_model(tiny_model(tokenizer, "bart"), place / "bart")
    save_language_model(tiny_model(tokenizer, "t5"), place / "t5")
    save_language_model(tiny_model(tokenizer), place / "llama")
    (place / "text.txt").write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    return place


PPO = ["ppo", "--data.prompts", "pairs.jsonl", "--reward.use", "reward.py:score", "--data.eval-count", "2"]
BAD = {
    "packed": ([*PPO, "--model.policy", "t5", "--model.packed", "true"], "set model.packed = false"),
    "ptx": ([*PPO, "--model.policy", "t5", "--ptx.coef", "1", "--ptx.text", "text.txt"], "no prompt for an encoder"),
    "conversation": (
        ["ppo", "--model.policy", "t5", "--environment.use", "number-game"],
        "conversations are for decoder-only models",
    ),
    "conversation, evaluated": (
        ["evaluate", "--model.policy", "t5", "--environment.use", "number-game"],
        "conversations are for decoder-only models",
    ),
    "response over the context": (
        [*PPO, "--model.policy", "bart", "--rollout.max-new-tokens", "128"],
        "rollout.max_new_tokens = 128",
    ),
    "prompt over the context": ([*PPO, "--model.policy", "bart", "--data.max-prompt-tokens", "129"], "leaves 128"),
    "pretrain new": (["pretrain", "--text.train", "text.txt", "--new.type", "t5"], "learns from pairs"),
    "pretrain on": (["pretrain", "--text.train", "text.txt", "--model.policy", "bart"], "learns from pairs"),
    "both": (["sft", "--text.train", "pairs.jsonl", "--model.policy", "t5", "--scratch.type", "t5"], "not both"),
    "neither": (["sft", "--text.train", "pairs.jsonl"], "set scratch.type to train a new model"),
    "heads": (
        ["sft", "--text.train", "pairs.jsonl", "--scratch.type", "t5", "--scratch.hidden", "30"],
        "must be a multiple of scratch.heads",
    ),
    "adapters": (
        ["sft", "--text.train", "pairs.jsonl", "--scratch.type", "t5", "--model.lora.rank", "2"],
        "adapters need model.policy",
    ),
    "long example": (
        [
            "sft", "--text.train", "pairs.jsonl", "--scratch.type", "t5", "--scratch.context", "8",
            "--scratch.vocabulary", "260",
        ],
        "tokens in prompt or response",
    ),
    "two kinds": (
        ["evaluate", "--model.policy", "t5", "--models", "llama", "--data.eval-prompts", "pairs.jsonl"],
        "not both encoder–decoders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_said_in_a_line(bart, capsys, case):
    arguments, wanted = BAD[case]
    more = [] if arguments[0] == "evaluate" else ["--run.folder", "run"]
    assert main([*arguments, "--model.device", "cpu", *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert wanted in error[-1]
    assert not (bart / "run").exists()


def test_each_side_has_the_whole_context(bart):
    """127 response tokens and the start token, and prompts of any length up to 128."""
    arguments = [*PPO, "--model.policy", "bart", "--model.device", "cpu", "--rollout.max-new-tokens", "127"]
    small = [
        "--ppo.steps",
        "1",
        "--ppo.batch-size",
        "4",
        "--ppo.truncation",
        "bootstrap",
        "--run.threads",
        "1",
    ]
    assert main([*arguments, *small, "--run.folder", "run", "--run.report", "false"]) == 0
