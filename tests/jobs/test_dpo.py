"""`proxlm dpo`: a policy from comparisons, held to its start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import proxlm
from proxlm.__main__ import main
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    DPOConfig,
    DPOSettings,
    LoraSettings,
    ModelSettings,
    OptimiserSettings,
    PreferenceSettings,
    RunSettings,
    SupervisedSettings,
)
from proxlm.errors import ConfigError, DataError
from proxlm.jobs.dpo import DPOTrainer
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from small_models import TEXTS, tiny_model

GOOD, BAD = ["good", "fine", "nice"], ["bad", "poor", "weak"]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{TEXTS[i % 3][: 6 + i % 5]} {i}:",
            "chosen": f" {GOOD[i % 3]}",
            "rejected": f" {BAD[(i // 3) % 3]}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    save_language_model(tiny_model(tokenizer), folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs(48)), "utf-8")
    return folder


def config(place: Path, folder: Path, steps: int = 30, **more: Any) -> DPOConfig:
    model = {"policy": str(place / "model"), "device": "cpu", **more.pop("model", {})}
    return DPOConfig(
        model=ModelSettings(**model),
        text=PreferenceSettings(
            train=[str(place / "pairs.jsonl")], validation_share=0.25, **more.pop("text", {})
        ),
        dpo=DPOSettings(**more.pop("dpo", {})),
        train=SupervisedSettings(steps=steps, batch_tokens=600, validate_every=10, patience=0),
        optim=OptimiserSettings(lr=2e-3, schedule="constant"),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False, **more),
    )


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    return DPOTrainer(config=config(place, tmp_path_factory.mktemp("run") / "run")).train()


def logprob(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """log π(response and EOS | prompt), a token at a time, by transformers alone."""
    first = tokenizer(prompt)["input_ids"]
    rest = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([[*first, *rest]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(first) + i - 1, token]) for i, token in enumerate(rest))


def test_it_begins_at_log_two_and_learns(run):
    assert run.metrics["loss"][0] == pytest.approx(math.log(2), abs=1e-6)  # the policy is the reference
    accuracy = [value for value in run.metrics["validation_accuracy"] if value is not None]
    assert accuracy[-1] == 1.0
    assert run.model == run.folder / "policy"
    assert verify_run(run.folder) == []
    assert {row["kind"] for row in run.samples} == {"chosen", "rejected"}


def test_loss_margin_and_rewards_are_those_of_two_transformers_models(run, place, tokenizer):
    """The best validation loss, from log-probs of the saved policy and of the start by transformers alone."""
    policy, start = (AutoModelForCausalLM.from_pretrained(path) for path in (run.model, place / "model"))
    trainer = DPOTrainer(config=config(place, place / "none"))
    rows = pairs(48)
    from proxlm.data.preferences import split_by_prompt

    _, held_out = split_by_prompt([row["prompt"] for row in rows], 0.25, trainer.config.run.seed)

    def reward(row: dict[str, Any], side: str) -> float:
        return 0.1 * (
            logprob(policy, tokenizer, row["prompt"], row[side])
            - logprob(start, tokenizer, row["prompt"], row[side])
        )

    leads = [reward(rows[i], "chosen") - reward(rows[i], "rejected") for i in held_out]
    losses = [math.log1p(math.exp(-lead)) for lead in leads]
    found = [value for value in run.metrics["validation_loss"] if value is not None]
    best = found.index(min(found))
    margins = [value for value in run.metrics["validation_margin"] if value is not None]
    assert min(found) == pytest.approx(sum(losses) / len(losses), abs=2e-5)
    assert margins[best] == pytest.approx(sum(leads) / len(leads), abs=2e-4)


def test_an_interrupted_run_is_the_same_bit_by_bit(place, tmp_path):
    DPOTrainer(config=config(place, tmp_path / "half", steps=3)).train()
    more = proxlm.load_config(
        "dpo", tmp_path / "half" / "config.toml", {"train.steps": 6, "run.resume": True}
    )
    resumed = DPOTrainer(config=more).train()
    straight = DPOTrainer(config=config(place, tmp_path / "straight", steps=6)).train()
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    first, second = (newest_checkpoint(r.folder) for r in (resumed, straight))
    names = ["state.json", "manifest.json"]
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file() and p.name not in names]
    assert files
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_messages_lora_margin_and_smoothing(place, tmp_path):
    pytest.importorskip("peft")
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = [
        {
            "chosen": [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": "good"}],
            "rejected": [
                {"role": "user", "content": pair["prompt"]},
                {"role": "assistant", "content": "bad"},
            ],
            "margin": 1.0,
        }
        for pair in pairs(24)
    ]
    text = {"chat_template": str(template), "margin_field": "margin"}
    made = config(place, tmp_path / "run", steps=2, text=text, model={"lora": LoraSettings(rank=2)})
    run = DPOTrainer(train=rows, config=made).train()
    assert run.metrics["loss"][0] == pytest.approx(math.log(1 + math.e), abs=1e-5)
    assert (run.model / "adapter").is_dir()
    response = run.samples[0]["response"]
    assert response.startswith("good")
    smooth = config(place, tmp_path / "smooth", steps=1, dpo={"label_smoothing": 0.3})
    assert DPOTrainer(config=smooth).train().metrics["loss"][0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_long_text_is_an_error_left_out_or_loses_the_beginning_of_its_prompt(place, tmp_path):
    rows = [*pairs(12), {"prompt": "x" * 100, "chosen": " good", "rejected": " bad"}]
    limit = {"max_tokens": 40}
    with pytest.raises(DataError, match=r"train:13: \d+ tokens with the prompt, the limit is 40"):
        DPOTrainer(train=rows, config=config(place, tmp_path / "a", text=limit)).train()
    for how, left_out in (("skip", 1), ("truncate", 0)):
        made = config(place, tmp_path / how, steps=1, text={**limit, "on_long_text": how})
        run = DPOTrainer(train=rows, config=made).train()
        assert (run.folder / "skipped.jsonl").exists() == bool(left_out)


def test_settings_that_cannot_be(place, tmp_path):
    with pytest.raises(ConfigError, match=r"text\.pair = true: a policy goes on with its prompt"):
        DPOTrainer(config=config(place, tmp_path / "run", text={"pair": True}))


def test_the_command_and_what_uses_its_model(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [
        "--train.steps",
        "2",
        "--train.batch-tokens",
        "600",
        "--run.folder",
        "run",
        "--model.device",
        "cpu",
    ]
    data = ["--text.train", str(place / "pairs.jsonl"), "--run.tensorboard", "false"]
    assert main(["dpo", "--model.policy", str(place / "model"), *data, *options]) == 0
    assert "best validation loss" in capsys.readouterr().out
    assert main(["generate", "run", "--prompt", "The cat", "--rollout.max-new-tokens", "2"]) == 0
