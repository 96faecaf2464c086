"""Every command from end to end on a tiny model, through the command line's own entry."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxlm.__main__ import main
from proxlm.config import load_config
from proxlm.jobs.ppo import PPOTrainer
from proxlm.models.save import save_language_model
from proxlm.rewards.builtin import python_tests
from proxlm.sandbox import isolation
from proxlm.types import Completion
from small_models import TEXTS, tiny_model

REWARD = "def score(completions):\n    return [sum(c in 'aeiou' for c in x.text) / 20 for x in completions]\n"


@pytest.fixture
def place(tokenizer, tmp_path, monkeypatch) -> Path:
    """A folder with a model, prompts and a reward, which is also the current folder."""
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    lines = [json.dumps({"prompt": f"{text[:12]} {i}", "answer": i}) for i in range(6) for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "reward.py").write_text(REWARD, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(
        '[model]\npolicy = "model"\ncritic = "shared"\ndevice = "cpu"\n'
        '[data]\nprompts = "prompts.jsonl"\neval_count = 6\n'
        "[rollout]\nmax_new_tokens = 8\n"
        '[reward]\nuse = "reward.py:score"\n'
        "[ppo]\nsteps = 4\nbatch_size = 8\nepochs = 1\n"
        '[optim.policy]\nlr = 1e-3\nschedule = "constant"\n[optim.critic]\nschedule = "constant"\n'
        '[run]\nfolder = "run"\nsave_every = 2\ntensorboard = false\nthreads = 1\n',
        encoding="utf-8",
    )
    return tmp_path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_ppo_leaves_a_whole_run_folder(place, capsys):
    assert main(["ppo", "recipe.toml", "--ppo.kl-coef", "0.1"]) == 0
    run = place / "run"
    assert [row["step"] for row in rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    names = {
        "reward", "kl", "entropy", "clip_fraction", "approx_kl", "ratio_mean", "ratio_max", "explained_variance",
        "value_loss", "policy_loss", "response_length", "eos_share", "lr/policy", "lr/critic", "kl_coef",
        "time/generate", "time/score", "time/prepare", "time/update", "time/cpu", "tokens_per_second", "memory_gb",
    }  # fmt: skip
    assert names <= set(rows(run / "metrics.jsonl")[0])
    assert rows(run / "metrics.jsonl")[0]["kl_coef"] == 0.1
    sample = rows(run / "samples.jsonl")[0]
    assert {len(values) for values in sample["per_token"].values()} == {len(sample["tokens"])}
    assert load_config("ppo", run / "config.toml").ppo.kl_coef == 0.1
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert [m["name"] for m in evaluation["models"]] == ["before", "after"]
    assert evaluation["models"][0]["metrics"]["kl"]["mean"] == 0.0
    assert (run / "report.html").stat().st_size > 30_000
    final = AutoModelForCausalLM.from_pretrained(run / "policy")
    newest = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-00000004" / "policy")
    assert all(torch.equal(a, b) for a, b in zip(final.parameters(), newest.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(run / "policy").eos_token == "<|eos|>"
    printed = capsys.readouterr().out
    assert "reward" in printed
    assert "6 held-out prompts" in printed


def test_resume_equals_one_run(place):
    assert main(["ppo", "recipe.toml", "--run.folder", "whole"]) == 0
    assert main(["ppo", "recipe.toml", "--ppo.steps", "2"]) == 0
    assert main(["ppo", "recipe.toml", "--resume"]) == 0
    one, two = (AutoModelForCausalLM.from_pretrained(place / name / "policy") for name in ("whole", "run"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    timeless = [
        [
            {k: v for k, v in row.items() if not k.startswith(("time", "tokens_per", "memory"))}
            for row in rows(f)
        ]
        for f in (place / "whole" / "metrics.jsonl", place / "run" / "metrics.jsonl")
    ]
    assert timeless[0] == timeless[1]
    assert (place / "whole" / "samples.jsonl").read_text() == (place / "run" / "samples.jsonl").read_text()


def test_python_function_as_reward(place):
    config = load_config(
        "ppo", place / "recipe.toml", {"reward.use": "", "run.report": False, "ppo.steps": 1}
    )
    result = PPOTrainer(
        config=config, reward=lambda completions: [float(len(c.text)) for c in completions]
    ).train()
    assert result.after is not None
    assert result.after.metrics["reward"].mean > 1
    assert not (place / "run" / "report.html").exists()


def test_a_run_is_resumed_from_any_directory(place, tmp_path, monkeypatch):
    assert main(["ppo", "recipe.toml", "--data.prompts", "prompts.jsonl"]) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["ppo", str(place / "run" / "config.toml"), "--resume", "--ppo.steps", "6"]) == 0
    assert [row["step"] for row in rows(place / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert main(["evaluate", str(place / "run")]) == 0
    assert list(elsewhere.iterdir()) == []
    # So it is after the whole folder was moved, once its new place is given.
    moved = place.rename(place.with_name(f"{place.name}-moved"))
    settings = {
        "run.folder": "run",
        "model.policy": "model",
        "data.prompts": "prompts.jsonl",
        "reward.use": "reward.py:score",
    }
    arguments = [part for key, name in settings.items() for part in (f"--{key}", str(moved / name))]
    monkeypatch.chdir(moved / "elsewhere")
    assert main(["ppo", str(moved / "run" / "config.toml"), "--resume", "--ppo.steps", "7", *arguments]) == 0
    assert len(rows(moved / "run" / "metrics.jsonl")) == 7


def test_lora_run_ends_in_an_ordinary_model(place):
    arguments = ["--model.lora.rank", "2", "--model.critic", "separate", "--run.folder", "lora"]
    assert main(["ppo", "recipe.toml", *arguments]) == 0
    assert not (place / "lora" / "policy" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(place / "lora" / "policy")
    AutoModelForCausalLM.from_pretrained(place / "lora" / "checkpoints" / "step-00000004" / "policy")


def test_evaluate_a_run_and_generate_with_it(place, capsys, monkeypatch):
    assert main(["ppo", "recipe.toml"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "--output", "table.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["metric", "model", "run/policy"]
    assert len(json.loads((place / "table.json").read_text())["models"]) == 2
    assert main(["generate", "run", "--prompt", "The cat", "--rollout.temperature", "0"]) == 0
    one = capsys.readouterr().out
    assert main(["generate", "run", "--prompt", "The cat", "--rollout.temperature", "0"]) == 0
    assert capsys.readouterr().out == one
    monkeypatch.setattr("sys.stdin", io.StringIO("A dog\n"))
    assert main(["generate", "run"]) == 0  # asks for a prompt; the run's own prompts are not taken over
    assert len(capsys.readouterr().out.splitlines()) < 10
    assert main(["generate", "run", "--data.prompts", "prompts.jsonl", "--output", "out.jsonl"]) == 0
    written = rows(place / "out.jsonl")
    assert len(written) == 24
    assert written[0]["prompt"] == f"{TEXTS[0][:12]} 0"
    assert main(["generate", "run", "--data.prompts", "prompts.jsonl", "--output", "out.jsonl"]) == 0
    assert rows(place / "out.jsonl") == written
    (place / "mine.jsonl").write_text('{"prompt": "a"}')
    assert main(["generate", "run", "--data.prompts", "prompts.jsonl", "--output", "mine.jsonl"]) == 2
    assert "mine.jsonl: is there already, and proxlm generate did not" in capsys.readouterr().err
    assert (place / "mine.jsonl").read_text() == '{"prompt": "a"}'
    assert main(["report", "run", "--output", "again.html"]) == 0
    assert main(["report", "run", "--output", "again.html"]) == 0
    (place / "again.html").write_text("<title>Mine</title>")
    assert main(["report", "run", "--output", "again.html"]) == 2
    assert (place / "again.html").read_text() == "<title>Mine</title>"


def test_conversation_on_standard_input(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\nA dog\n\n"))
    assert main(["generate", "--model.policy", "model", "--rollout.max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.rstrip("\n").split("\n")) >= 2


def test_pretrain_then_sft_then_resume(place):
    (place / "text").mkdir()
    for i in range(4):
        (place / "text" / f"{i}.txt").write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    small = [
        "--new.hidden", "32", "--new.layers", "1", "--new.heads", "2", "--new.vocabulary", "300",
        "--new.context", "64", "--train.block", "32", "--train.batch-tokens", "256",
        "--run.threads", "1", "--model.device", "cpu", "--run.tensorboard", "false",
    ]  # fmt: skip
    steps = ["--train.steps", "30", "--train.validate-every", "10", "--run.save-every", "10"]
    arguments = ["pretrain", "--text.train", "text", "--run.folder", "base", *small, *steps]
    assert main(arguments) == 0
    losses = [
        row["validation_loss"] for row in rows(place / "base" / "metrics.jsonl") if "validation_loss" in row
    ]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.3
    data = [
        {"prompt": "The cat", "response": " sat on the mat."},
        {"prompt": "春眠", "response": "不觉晓"},
    ] * 10
    (place / "sft.jsonl").write_text("\n".join(json.dumps(row) for row in data), encoding="utf-8")
    sft = [
        "sft", "--model.policy", "base/policy", "--text.train", "sft.jsonl", "--train.batch-tokens", "200",
        "--optim.lr", "1e-2", "--optim.warmup", "5", "--run.threads", "1", "--model.device", "cpu", *steps,
    ]  # fmt: skip
    assert main([*sft, "--run.folder", "sft"]) == 0
    metrics = rows(place / "sft" / "metrics.jsonl")
    assert metrics[-1]["validation_loss"] < 1.0 < 4.0 < metrics[0]["loss"]
    assert main([*sft, "--run.folder", "parts", "--train.steps", "20", "--optim.schedule", "constant"]) == 0
    assert main([*sft, "--run.folder", "parts", "--resume", "--optim.schedule", "constant"]) == 0
    assert main([*sft, "--run.folder", "one", "--optim.schedule", "constant"]) == 0
    pair = [AutoModelForCausalLM.from_pretrained(place / name / "policy") for name in ("parts", "one")]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in pair), strict=True))
    # What is validated on is not trained on, and here nothing else is left.
    assert main([*sft, "--text.validation", "sft.jsonl", "--run.folder", "same"]) == 2
    assert not (place / "same").exists()


def test_early_stopping_keeps_the_best(place):
    (place / "a.txt").write_text(TEXTS[0] * 30, encoding="utf-8")
    (place / "b.txt").write_text("completely 12345 other % text #" * 30, encoding="utf-8")
    assert main([
        "pretrain", "--text.train", "a.txt", "--text.validation", "b.txt", "--run.folder", "stop",
        "--new.hidden", "32", "--new.layers", "1", "--new.heads", "2", "--new.vocabulary", "260",
        "--train.block", "16", "--run.threads", "1",
        "--train.steps", "200", "--train.validate-every", "5", "--train.patience", "2", "--model.device", "cpu",
        "--train.batch-tokens", "128",
    ]) == 0  # fmt: skip
    metrics = rows(place / "stop" / "metrics.jsonl")
    validations = [(row["step"], row["validation_loss"]) for row in metrics if "validation_loss" in row]
    assert len(metrics) < 200
    best = min(range(len(validations)), key=lambda i: validations[i][1])
    assert len(validations) - 1 - best == 2


def test_lora_weights_follow_the_seed_alone(place):
    arguments = ["--model.lora.rank", "2", "--ppo.steps", "1", "--data.eval-count", "0"]
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))  # what came before must not matter
        assert main(["ppo", "recipe.toml", *arguments, "--run.folder", name]) == 0
    one, two = (AutoModelForCausalLM.from_pretrained(place / name / "policy") for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_evaluate_takes_the_runs_own_held_out_prompts(place):
    assert main(["ppo", "recipe.toml", "--run.seed", "7"]) == 0
    assert main(["evaluate", "run", "--output", "table.json"]) == 0
    of_run = json.loads((place / "run" / "evaluation.json").read_text(encoding="utf-8"))
    again = json.loads((place / "table.json").read_text(encoding="utf-8"))
    for old, new in zip(of_run["models"], again["models"], strict=True):
        assert old["samples"] == new["samples"]
        means = [{name: e["mean"] for name, e in model["metrics"].items()} for model in (old, new)]
        assert means[0] == pytest.approx(means[1], abs=1e-6)


def test_resumed_pretraining_keeps_its_tokenizer(place):
    (place / "a.txt").write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    arguments = [
        "pretrain", "--text.train", "a.txt", "--run.folder", "base", "--new.hidden", "32", "--new.layers", "1",
        "--new.heads", "2", "--new.vocabulary", "290", "--train.block", "16", "--train.batch-tokens", "128",
        "--run.threads", "1", "--model.device", "cpu", "--train.validate-every", "5",
    ]  # fmt: skip
    assert main([*arguments, "--train.steps", "5"]) == 0
    before = AutoTokenizer.from_pretrained(place / "base" / "policy").get_vocab()
    (place / "a.txt").write_text("zq xj vk " * 600, encoding="utf-8")
    assert main([*arguments, "--train.steps", "10", "--resume"]) == 2  # other rows than before
    assert AutoTokenizer.from_pretrained(place / "base" / "policy").get_vocab() == before


def test_code_rewards_in_a_run_whose_responses_are_hostile(place):
    """Each response is replaced by a program, most of them hostile; the run learns from the right scores."""
    if not isolation().landlock:
        pytest.skip("needs Linux with Landlock")
    programs = [
        ("def f(x): return x + 1", 1.0),
        ("import os\nwhile True: os.fork()", -1.0),
        ("import os\nos.kill(os.getppid(), 9)", -1.0),
        ("x = bytes(1 << 40)", -1.0),
        ("import ctypes\nctypes.string_at(0)", -1.0),
        ("def f(x): return 7", 0.5),
        ("while True: print('spam')", -1.0),
        ("import shutil\nshutil.rmtree('@')\ndef f(x): return x + 1", -1.0),
    ]
    reward = python_tests(failure=-1.0)
    seen = []

    def hostile(completions):
        chosen = [programs[i % len(programs)] for i in range(len(completions))]
        tests = {"tests": ["assert f(1) == 2", "assert f(6) == 7"]}
        made = [Completion("", source.replace("@", str(place)), fields=tests) for source, _ in chosen]
        values = reward(made)["passed"]
        seen.append((values, [worth for _, worth in chosen]))
        return values

    config = load_config(
        "ppo", place / "recipe.toml", {"reward.use": "", "run.report": False, "ppo.steps": 2}
    )
    result = PPOTrainer(config=config, reward=hostile).train()
    assert all(values == worth for values, worth in seen)
    assert [row["step"] for row in rows(place / "run" / "metrics.jsonl")] == [1, 2]
    assert [row["reward"] for row in rows(place / "run" / "metrics.jsonl")] == [-4.5 / 8] * 2
    assert result.after is not None
    assert (place / "model").is_dir()
