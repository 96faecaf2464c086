"""`proxlm reward`: from comparisons to a classifier that transformers, a reward and a critic take as it is."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import proxlm
from proxlm.__main__ import main
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    ModelSettings,
    ObjectiveSettings,
    OptimiserSettings,
    PreferenceSettings,
    RewardConfig,
    RunSettings,
    SupervisedSettings,
)
from proxlm.data.preferences import split_by_prompt
from proxlm.errors import ConfigError, DataError, ModelError
from proxlm.jobs.reward import RewardTrainer
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from proxlm.rewards.reward_model import RewardModel
from proxlm.types import Completion
from small_models import TEXTS, tiny_model

# The better completion praises; position and length say nothing.
GOOD, BAD = ["good", "fine", "nice"], ["bad", "poor", "weak"]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{TEXTS[i % 3][: 6 + i % 5]} {i}:",
            "chosen": f" {GOOD[i % 3]} {'.' * (i % 4)}",
            "rejected": f" {BAD[(i // 3) % 3]} {'.' * ((i // 2) % 4)}",
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    save_language_model(tiny_model(tokenizer), folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs(60)), "utf-8")
    return folder


def config(place: Path, folder: Path, steps: int = 40, **more: Any) -> RewardConfig:
    model = {"policy": str(place / "model"), "device": "cpu", **more.pop("model", {})}
    return RewardConfig(
        model=ModelSettings(**model),
        text=PreferenceSettings(
            train=[str(place / "pairs.jsonl")], validation_share=0.25, **more.pop("text", {})
        ),
        objective=ObjectiveSettings(**more.pop("objective", {})),
        train=SupervisedSettings(steps=steps, batch_tokens=600, validate_every=10, patience=0),
        optim=OptimiserSettings(lr=3e-3, **more.pop("optim", {})),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False, **more),
    )


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    return RewardTrainer(config=config(place, tmp_path_factory.mktemp("run") / "run")).train()


def test_it_learns_what_is_better_and_begins_at_chance(run):
    assert run.metrics["loss"][0] == pytest.approx(math.log(2), abs=1e-6)  # all scores are 0
    accuracy = [value for value in run.metrics["validation_accuracy"] if value is not None]
    assert accuracy[-1] == 1.0
    assert min(value for value in run.metrics["validation_loss"] if value is not None) < 0.1
    assert run.model == run.folder / "reward"
    assert verify_run(run.folder) == []
    assert (run.folder / "report.html").exists()


def test_samples_are_both_completions_after_their_common_prompt_with_scores(run):
    last = [row for row in run.samples if row["step"] == 40]
    assert [(row["prompt_id"], row["kind"]) for row in last] == [
        (row, side) for row in range(4) for side in ("chosen", "rejected")
    ]
    for chosen, rejected in zip(last[::2], last[1::2], strict=True):
        assert chosen["prompt"] == rejected["prompt"]
        assert any(word in chosen["prompt"] + chosen["response"] for word in GOOD)
        assert any(word in rejected["prompt"] + rejected["response"] for word in BAD)
        assert chosen["reward"] > rejected["reward"]


def test_transformers_alone_and_the_reward_give_the_same_scores(run):
    model = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert (model.config.num_labels, model.config.architectures) == (1, ["LlamaForSequenceClassification"])
    reward = RewardModel(str(run.model), device="cpu")
    completions = [
        Completion(pair["prompt"], pair[side]) for pair in pairs(9) for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        alone = [
            float(model(**tokenizer(c.prompt + c.text, return_tensors="pt")).logits) for c in completions
        ]
    assert reward(completions) == pytest.approx(alone, abs=1e-5)
    assert all(good > bad for good, bad in zip(alone[::2], alone[1::2], strict=True))


def test_a_critic_begins_with_it(run, place, tmp_path):
    settings = proxlm.PPOConfig(
        model=ModelSettings(policy=str(place / "model"), critic_from=str(run.model), device="cpu")
    )
    models = proxlm.actor_critic(proxlm.load_model(str(place / "model"), settings.model), settings)
    score = AutoModelForSequenceClassification.from_pretrained(run.model).score.weight
    head = models.critic_parameters()
    assert any(p.shape == score.shape and torch.equal(p.detach(), score) for _, p in head)


def test_an_interrupted_run_is_the_same_bit_by_bit(place, tmp_path):
    whole = RewardTrainer(config=config(place, tmp_path / "whole", steps=6)).train()
    half = config(place, tmp_path / "half", steps=3, optim={"schedule": "constant"})
    other = config(place, tmp_path / "other", steps=6, optim={"schedule": "constant"})
    RewardTrainer(config=half).train()
    more = proxlm.load_config(
        "reward", tmp_path / "half" / "config.toml", {"train.steps": 6, "run.resume": True}
    )
    resumed, straight = RewardTrainer(config=more).train(), RewardTrainer(config=other).train()
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    assert len(whole.metrics["loss"]) == 6
    names = ["state.json", "manifest.json"]
    first, second = (newest_checkpoint(r.folder) for r in (resumed, straight))
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file() and p.name not in names]
    assert files
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_records_in_python_and_a_new_model(tmp_path):
    settings = RewardConfig(
        scratch=proxlm.NewModelSettings(hidden=16, layers=1, heads=2, vocabulary=300, context=64),
        model=ModelSettings(device="cpu"),
        text=PreferenceSettings(validation_share=0.2),
        train=SupervisedSettings(steps=30, batch_tokens=900, validate_every=10),
        optim=OptimiserSettings(lr=2e-2),
        run=RunSettings(folder=str(tmp_path / "run"), tensorboard=False),
    )
    run = RewardTrainer(train=pairs(80), config=settings).train()
    assert [value for value in run.metrics["validation_accuracy"] if value is not None][-1] > 0.9
    assert RewardModel(str(run.model), device="cpu")([Completion("One day", " good")])[0] != 0.0


def test_one_prompt_is_never_on_both_sides_of_the_split():
    prompts = [f"p{i // 4}" for i in range(32)]
    training, held_out = split_by_prompt(prompts, 0.25, 0)
    assert len(training) + len(held_out) == 32
    assert {prompts[i] for i in training}.isdisjoint(prompts[i] for i in held_out)
    assert len(held_out) == 8


def test_margin_centring_and_smoothing_reach_the_loss(place, tmp_path):
    rows = [{**pair, "margin": 1.0} for pair in pairs(20)]
    for name, text, objective, first in [
        ("margin", {"margin_field": "margin"}, {}, math.log(1 + math.e)),
        ("smooth", {}, {"label_smoothing": 0.2}, math.log(2)),
        ("centred", {}, {"centring": 0.5}, math.log(2)),
    ]:
        made = config(place, tmp_path / name, steps=2, text=text, objective=objective)
        run = RewardTrainer(train=rows, config=made).train()
        assert run.metrics["loss"][0] == pytest.approx(first, abs=1e-6), name


def test_a_long_text_is_an_error_left_out_or_cut(place, tmp_path):
    rows = [*pairs(12), {"prompt": "x" * 400, "chosen": " good", "rejected": " bad"}]
    with pytest.raises(DataError, match=r"train:13: \d+ tokens with the prompt, the limit is 64"):
        RewardTrainer(train=rows, config=config(place, tmp_path / "a", text={"max_tokens": 64})).train()
    for how, left_out in (("skip", 1), ("truncate", 0)):
        text = {"max_tokens": 64, "on_long_text": how}
        run = RewardTrainer(train=rows, config=config(place, tmp_path / how, steps=1, text=text)).train()
        assert (run.folder / "skipped.jsonl").exists() == bool(left_out)


def chats(count: int) -> list[dict[str, Any]]:
    def of(pair: dict[str, Any], side: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]

    return [{side: of(pair, side) for side in ("chosen", "rejected")} for pair in pairs(count)]


def test_messages_are_read_through_a_template_that_is_saved_with_the_model(place, tmp_path):
    with pytest.raises(DataError, match=r"the tokenizer has no chat template; set text\.chat_template"):
        RewardTrainer(train=chats(20), config=config(place, tmp_path / "none")).train()
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    made = config(place, tmp_path / "run", steps=10, text={"chat_template": str(template)})
    run = RewardTrainer(train=chats(20), config=made).train()
    rows = [
        json.loads(line) for line in (run.folder / "evaluation-model.jsonl").read_text("utf-8").splitlines()
    ]
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    model = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    text = f"user: {rows[0]['prompt']}\nassistant: {rows[0]['chosen']}\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        alone = float(model(ids).logits)
    assert rows[0]["chosen_score"] == pytest.approx(alone, abs=1e-5)
    assert tokenizer.chat_template == template.read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"model": {"activation_checkpointing": True}},
            "model.activation_checkpointing = true: not of a reward",
        ),
        ({"model": {"packed": True}}, "model.packed = true: a reward model's texts are not packed"),
        ({"text": {"winner_values": ["a"]}}, "text.winner_values"),
        ({"text": {"completion_fields": ["a", "a"]}}, "text.completion_fields"),
    ],
)
def test_settings_that_cannot_be(place, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        RewardTrainer(config=config(place, tmp_path / "run", **changed))


def test_a_model_that_is_none(place, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(place / "model", broken)
    (broken / "model.safetensors").unlink()
    made = config(place, tmp_path / "run", model={"policy": str(broken)})
    with pytest.raises(ModelError):
        RewardTrainer(config=made).train()


def test_evaluate_says_that_there_is_no_language_model(run, capsys):
    assert main(["evaluate", str(run.folder), "--data.eval-prompts", "p.txt"]) == 2
    assert "a run of proxlm reward, which leaves no language model" in capsys.readouterr().err


def test_the_finished_model_is_judged_beside_length(run):
    """The numbers are those of the scores that it wrote, and the scores are those of the reward."""
    rows = [
        json.loads(line) for line in (run.folder / "evaluation-model.jsonl").read_text("utf-8").splitlines()
    ]
    found = run.evaluations
    assert [name for name in found if name != "words"] == ["length", "model"]
    assert found["model"].prompts == len(rows) == 15  # a quarter of 60 prompts
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert found["model"].metrics["accuracy"].mean == right / 15 == 1.0
    assert found["model"].metrics["accuracy"].high == 1.0
    assert found["model"].metrics["accuracy"].low < 0.9  # Wilson: 15 of 15 is not certainty
    longer = [
        (len(row["chosen"]) > len(row["rejected"])) + 0.5 * (len(row["chosen"]) == len(row["rejected"]))
        for row in rows
    ]
    shorter = found["length"].model == "the shorter one"
    assert found["length"].metrics["accuracy"].mean == pytest.approx(abs(shorter - sum(longer) / 15))
    assert {"margin", "log_loss", "calibration_error", "length_correlation"} <= set(found["model"].metrics)
    reward = RewardModel(str(run.model), device="cpu")
    scores = reward([Completion(row["prompt"], row["chosen"]) for row in rows])
    assert scores == pytest.approx([row["chosen_score"] for row in rows], abs=1e-5)
    page = (run.folder / "report.html").read_text("utf-8")
    assert "Held-out records" in page
    assert "calibration_error" in page


def test_length_is_judged_in_the_direction_of_the_training_part(place, tmp_path):
    """Where shorter answers are better, a model that has learnt brevity is not above the judge by length."""
    brief = [
        {"prompt": f"Say {i}:", "chosen": " yes" + "." * (i % 3), "rejected": " yes" + "!" * 9}
        for i in range(24)
    ]
    verbose = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in brief]
    for name, train, test, accuracy in (("shorter", brief, brief, 1.0), ("longer", verbose, brief, 0.0)):
        made = config(place, tmp_path / name, 1)
        made = replace(made, text=PreferenceSettings())
        found = RewardTrainer(train=train, validation=test, config=made).train().evaluations["length"]
        assert (found.model, found.metrics["accuracy"].mean) == (f"the {name} one", accuracy)


def test_files_of_its_own_slices_and_best_of_four(place, tmp_path, capsys):
    rows = [{**pair, "topic": "long" if i % 2 else "short"} for i, pair in enumerate(pairs(8))]
    four = [
        {"prompt": "One day:", "chosen": [" good"], "rejected": [" bad", " poor", " weak"], "topic": "best"},
        {"prompt": "moon:", "chosen": [" nice"], "rejected": [" weak", " bad", " poor"], "topic": "best"},
    ]
    for name, records in (("test", rows), ("four", four)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), "utf-8")
    test = proxlm.ComparisonTestSettings(
        files=[str(tmp_path / "test.jsonl")], best_of=str(tmp_path / "four.jsonl")
    )
    made = replace(config(place, tmp_path / "run", text={"slice_field": "topic"}), test=test)
    training = [{**pair, "topic": "t"} for pair in pairs(60)]
    found = RewardTrainer(train=training, config=made).train().evaluations["model"]
    assert found.prompts == 8
    assert found.metrics["best_of_n"].mean == 1.0
    assert {"accuracy/long", "accuracy/short", "best_of_n/best"} <= set(found.metrics)
    bad = replace(
        made,
        test=replace(test, best_of=str(place / "model" / "config.json")),
        run=replace(made.run, folder=str(tmp_path / "b")),
    )
    with pytest.raises(DataError):
        RewardTrainer(train=training, config=bad).train()
    assert not (tmp_path / "b").exists()
