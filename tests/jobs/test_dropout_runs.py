"""train.dropout in whole runs: a resume ends in the same bytes, it acts, and it is refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.config import (
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    PreferenceSettings,
    RewardConfig,
    RunSettings,
    SFTConfig,
    SupervisedSettings,
    TextSettings,
)
from proxlm.errors import ConfigError, RunError
from proxlm.jobs.reward import RewardTrainer
from proxlm.jobs.sft import SFTTrainer
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dropout")
    save_language_model(tiny_model(tokenizer), folder / "model")
    save_language_model(tiny_model(tokenizer, "lstm"), folder / "lstm")
    records = [
        {
            "prompt": f"{text[:6]} {i}",
            "response": text[6 : 12 + i],
            "chosen": " good",
            "rejected": f" bad {i}",
        }
        for i in range(6)
        for text in TEXTS
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return folder


def loop(place, folder, p, **more):
    train = SupervisedSettings(
        steps=4, batch_tokens=120, micro_batch_tokens=48, validate_every=2, dropout=p, **more
    )
    return {
        "train": train,
        "optim": OptimiserSettings(lr=3e-3, schedule="constant"),
        "run": RunSettings(folder=str(folder), tensorboard=False, report=False, threads=1, save_every=1),
    }


def sft(place, folder, p=0.3, model="model"):
    text = TextSettings(train=[str(place / "pairs.jsonl")], validation_share=0.2)
    settings = ModelSettings(policy=str(place / model), device="cpu")
    return SFTConfig(model=settings, text=text, **loop(place, folder, p))


def reward(place, folder, p=0.3):
    text = PreferenceSettings(train=[str(place / "pairs.jsonl")], validation_share=0.2)
    model = ModelSettings(policy=str(place / "model"), device="cpu")
    return RewardConfig(model=model, text=text, **loop(place, folder, p))


JOBS = {
    "sft": (SFTTrainer, sft),
    "sft-lstm": (SFTTrainer, lambda *a: sft(*a, model="lstm")),
    "reward": (RewardTrainer, reward),
}


def weights(run) -> bytes:
    return (Path(run.model) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("job", JOBS)
def test_a_resumed_run_ends_in_the_same_bytes(place, tmp_path, job):
    trainer, config = JOBS[job]
    whole = trainer(config=config(place, tmp_path / "whole")).train()
    settings = config(place, tmp_path / "parts")
    trainer(config=replace(settings, train=replace(settings.train, steps=2))).train()
    parts = trainer(config=replace(settings, run=replace(settings.run, resume=True))).train()
    assert weights(parts) == weights(whole)
    assert parts.metrics["validation_loss"] == whole.metrics["validation_loss"]
    assert parts.metrics["loss"] == whole.metrics["loss"]


def test_it_acts_and_the_model_is_written_as_without_it(place, tmp_path):
    dropped = SFTTrainer(config=sft(place, tmp_path / "dropped")).train()
    plain = SFTTrainer(config=sft(place, tmp_path / "plain", 0.0)).train()
    assert abs(dropped.metrics["loss"][0] - plain.metrics["loss"][0]) > 1e-2
    assert weights(dropped) != weights(plain)
    for name in ("config.json", "generation_config.json"):
        assert (Path(dropped.model) / name).read_bytes() == (Path(plain.model) / name).read_bytes()


def test_another_dropout_is_another_run(place, tmp_path):
    settings = sft(place, tmp_path / "run")
    SFTTrainer(config=replace(settings, train=replace(settings.train, steps=1))).train()
    other = replace(sft(place, tmp_path / "run", 0.1), run=replace(settings.run, resume=True))
    with pytest.raises(RunError, match=r"made with train\.dropout = 0\.3, not 0\.1"):
        SFTTrainer(config=other).train()


def test_where_it_cannot_be_it_is_refused_before_a_model_is_read(place, tmp_path, capsys):
    nowhere = ModelSettings(policy="nowhere", device="cpu", activation_checkpointing=True)
    with pytest.raises(
        ConfigError, match=r"train\.dropout = 0\.3: works without model\.activation_checkpointing"
    ):
        SFTTrainer(config=replace(sft(place, tmp_path), model=nowhere))
    assert (
        main(["dpo", "--model.policy", "nowhere", "--text.train", "a.jsonl", "--train.dropout", "0.1"]) == 2
    )
    assert "train.dropout = 0.1: log-probs are compared with the reference's" in capsys.readouterr().err
    assert main(["ppo", "--train.dropout", "0.1"]) == 2
    assert "train.dropout" in capsys.readouterr().err
    assert main(["sft", "--train.dropout", "1"]) == 2
    assert "train.dropout = 1" in capsys.readouterr().err


def test_a_new_encoder_decoder_learns_with_it(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = NewModelSettings(type="t5", hidden=32, layers=1, heads=4, vocabulary=300)
    settings = replace(sft(place, tmp_path / "t5"), scratch=new, model=ModelSettings(device="cpu"))
    run = SFTTrainer(config=settings).train()
    assert len(run.metrics["loss"]) == 4
    saved = json.loads((Path(run.model) / "config.json").read_text("utf-8"))
    assert saved["dropout_rate"] == 0.1  # T5's own default, which has no effect
