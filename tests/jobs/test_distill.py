"""`proxlm distill`: a student learns its teacher's texts, or its distribution at each token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import proxlm
from proxlm.checkpoint import newest_checkpoint
from proxlm.config import (
    DataSettings,
    DistillConfig,
    DistillSettings,
    ModelSettings,
    NewModelSettings,
    OptimiserSettings,
    RolloutSettings,
    RunSettings,
    SupervisedSettings,
    TextSettings,
)
from proxlm.errors import ConfigError, DataError, ModelError, RunError
from proxlm.jobs.distill import DistillTrainer
from proxlm.models.save import save_language_model
from proxlm.report.verify import verify_run
from small_models import TEXTS, WORDS, tiny_model

NEW = NewModelSettings(type="llama", hidden=32, layers=1, heads=2, context=64)


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    save_language_model(tiny_model(tokenizer), folder / "teacher")
    prompts = [{"prompt": f"{WORDS[i % 6]} {i}"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts), "utf-8")
    records = [{"prompt": f"{WORDS[i % 6]} {i}", "response": TEXTS[i % 4][:20]} for i in range(24)]
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    return folder


def config(place: Path, folder: Path, steps: int = 4, **more: Any) -> DistillConfig:
    model = {"teacher": str(place / "teacher"), "device": "cpu", **more.pop("model", {})}
    data = {"prompts": str(place / "prompts.jsonl"), "eval_count": 6, **more.pop("data", {})}
    return DistillConfig(
        scratch=more.pop("scratch", NewModelSettings(type="") if "policy" in model else NEW),
        model=ModelSettings(**model),
        distill=DistillSettings(**{"eval_samples": 4, **more.pop("distill", {})}),
        data=DataSettings(**data),
        text=TextSettings(**more.pop("text", {})),
        rollout=RolloutSettings(max_new_tokens=8, **more.pop("rollout", {})),
        train=SupervisedSettings(
            **{"steps": steps, "batch_tokens": 120, "validate_every": 2, **more.pop("train", {})}
        ),
        optim=OptimiserSettings(**{"lr": 3e-3, "schedule": "constant", **more.pop("optim", {})}),
        run=RunSettings(folder=str(folder), save_every=0, tensorboard=False, **more),
    )


def values(run: proxlm.Run, name: str) -> list[float]:
    return [value for value in run.metrics[name] if value is not None]


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    made = config(place, tmp_path_factory.mktemp("run") / "run", steps=20, train={"validate_every": 10})
    return DistillTrainer(config=made).train()


def test_a_student_comes_nearer_to_its_teacher(run):
    assert values(run, "loss")[-1] < 0.8 * values(run, "loss")[0]
    for name in ("validation_loss", "validation_forward_kl", "validation_reverse_kl"):
        found = values(run, name)
        assert len(found) == 2
        assert found[-1] < found[0]
    assert all(0 <= value <= 1 for value in values(run, "validation_agreement"))
    assert verify_run(run.folder) == []
    assert run.samples[0]["expected"]


def test_the_card_shows_teacher_and_student(run):
    card = (run.folder / "card.md").read_text("utf-8")
    best = values(run, "validation_forward_kl")[-1]
    assert f"{best:.4f}" in card
    assert card.count("M |") == 2
    shown = run.samples[-1]
    assert len(card.splitlines()) > 15
    assert "".join(c for c in shown["response"] if c.isalnum())[:6] in "".join(c for c in card if c.isalnum())


def test_the_metrics_are_those_of_two_transformers_models(run, place, tokenizer):
    """Forward KL, cross-entropy and agreement on the held-out answers, by transformers alone."""
    teacher, student = (AutoModelForCausalLM.from_pretrained(path) for path in (place / "teacher", run.model))
    rows = [json.loads(line) for line in (run.folder / "answers.jsonl").read_text("utf-8").splitlines()]
    held_out = [row for row in rows if row["part"] == "held_out"]
    assert len(held_out) == 6
    kl, cross_entropy, agreement, count = 0.0, 0.0, 0.0, 0
    for row in held_out:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *row["tokens"]]])
        with torch.no_grad():
            p, q = (
                m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (teacher, student)
            )
        kl += float((p.exp() * (p - q)).sum())
        cross_entropy -= float(q.gather(1, torch.tensor(row["tokens"])[:, None]).sum())
        agreement += float((p.argmax(1) == q.argmax(1)).sum())
        count += len(row["tokens"])
    best = values(run, "validation_loss").index(min(values(run, "validation_loss")))
    assert values(run, "validation_forward_kl")[best] == pytest.approx(kl / count, rel=1e-4)
    assert values(run, "validation_loss")[best] == pytest.approx(kl / count, rel=1e-4)
    assert values(run, "validation_cross_entropy")[best] == pytest.approx(cross_entropy / count, rel=1e-4)
    assert values(run, "validation_agreement")[best] == pytest.approx(agreement / count)


@pytest.mark.parametrize("mode", ["logits", "on_policy"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_is_its_teacher_loses_nothing_and_stays(place, tmp_path, mode, divergence):
    made = config(
        place,
        tmp_path / "run",
        steps=2,
        model={"policy": str(place / "teacher")},
        distill={"mode": mode, "divergence": divergence},
        optim={"lr": 1e-3, "name": "sgd"},
    )
    run = DistillTrainer(config=made).train()
    assert max(map(abs, values(run, "loss"))) < 1e-6
    assert max(values(run, "grad_norm")) < 1e-4
    assert max(map(abs, values(run, "validation_reverse_kl"))) < 1e-6
    assert values(run, "validation_agreement") == [1.0]
    before, after = (
        AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (place / "teacher", run.model)
    )
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, after[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "distill",
    [
        {"mode": "logits", "top_k": 5, "temperature": 2.0, "cross_entropy": 0.3},
        {"mode": "on_policy", "divergence": "jsd", "beta": 0.3, "student_share": 0.5},
        {"mode": "sequence"},
    ],
    ids=["logits", "on_policy", "sequence"],
)
def test_micro_batches_and_the_cache_change_nothing(place, tmp_path, distill):
    runs = []
    for name, tokens, cache in (("whole", 4096, 2.0), ("split", 20, 2.0), ("read again", 4096, 0.0)):
        made = config(
            place,
            tmp_path / name,
            steps=3,
            distill={**distill, "cache_gb": cache},
            train={"micro_batch_tokens": tokens, "batch_tokens": 120, "validate_every": 3},
        )
        runs.append(DistillTrainer(config=made).train())
    for name in ("loss", "grad_norm", "validation_loss", "validation_forward_kl", "validation_reverse_kl"):
        for other in runs[1:]:
            assert values(other, name) == pytest.approx(values(runs[0], name), rel=1e-4)


@pytest.mark.parametrize("mode", ["logits", "on_policy"])
def test_an_interrupted_run_is_the_same_bit_by_bit(place, tmp_path, mode):
    distill = {"mode": mode}
    DistillTrainer(config=config(place, tmp_path / "half", 3, distill=distill)).train()
    more = proxlm.load_config(
        "distill", tmp_path / "half" / "config.toml", {"train.steps": 6, "run.resume": True}
    )
    resumed = DistillTrainer(config=more).train()
    straight = DistillTrainer(config=config(place, tmp_path / "straight", 6, distill=distill)).train()
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    first, second = (newest_checkpoint(r.folder) for r in (resumed, straight))
    names = ["state.json", "manifest.json"]
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file() and p.name not in names]
    assert files
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


def test_only_own_samples_need_no_answers_to_train_on(place, tmp_path):
    made = config(place, tmp_path / "run", distill={"mode": "on_policy", "student_share": 1.0})
    run = DistillTrainer(config=made).train()
    rows = (run.folder / "answers.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(row)["part"] for row in rows} == {"held_out"}
    assert len(values(run, "loss")) == 4


def test_given_texts_are_read_by_the_teacher(place, tmp_path):
    made = config(
        place,
        tmp_path / "run",
        data={"prompts": ""},
        text={"train": [str(place / "records.jsonl")], "validation_share": 0.3},
    )
    run = DistillTrainer(config=made).train()
    assert not (run.folder / "answers.jsonl").exists()
    assert values(run, "validation_forward_kl")
    assert verify_run(run.folder) == []


def test_a_student_of_other_tokens_learns_texts_alone(place, tmp_path, capsys):
    new = {"scratch": replace(NEW, vocabulary=290), "distill": {"mode": "sequence", "tokenizer": "new"}}
    run = DistillTrainer(config=config(place, tmp_path / "new", **new)).train()
    own = AutoModelForCausalLM.from_pretrained(run.model)
    assert own.config.vocab_size <= 290
    assert values(run, "validation_cross_entropy")
    assert "validation_forward_kl" not in run.metrics
    # The student with its own tokens is now given: logits are refused, and the mode that takes it is named.
    policy = {"model": {"policy": str(run.model)}}
    with pytest.raises(ModelError, match=r'distill\.mode = "sequence"'):
        DistillTrainer(config=config(place, tmp_path / "refused", **policy)).train()
    assert not (tmp_path / "refused").exists()
    DistillTrainer(
        config=config(place, tmp_path / "taken", 1, distill={"mode": "sequence"}, **policy)
    ).train()
    assert "its texts are learnt" in capsys.readouterr().out


def test_chat_template_and_special_tokens_go_to_a_new_tokenizer(place, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    made = config(
        place,
        tmp_path / "run",
        2,
        data={"chat": True, "chat_template": str(template), "system": "Be short."},
        distill={"mode": "sequence", "tokenizer": "new"},
        scratch=replace(NEW, vocabulary=300, context=128),
    )
    run = DistillTrainer(config=made).train()
    row = json.loads((run.folder / "answers.jsonl").read_text("utf-8").splitlines()[0])
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert run.samples[0]["prompt"].startswith("system: Be short.\nuser: ")


def test_answers_are_written_once_and_go_on_where_they_were(place, tmp_path, monkeypatch):
    monkeypatch.setattr("proxlm.jobs.teacher_engine.TeacherEngine.group", 5)
    straight = DistillTrainer(config=config(place, tmp_path / "straight", 1)).train()
    whole = (straight.folder / "answers.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 24
    # Killed in the middle of a line of the third group, before any step.
    broken = tmp_path / "broken"
    broken.mkdir()
    text = (straight.folder / "config.toml").read_text("utf-8").replace(str(straight.folder), str(broken))
    (broken / "config.toml").write_text(text, "utf-8")
    (broken / "answers.jsonl").write_bytes(b"".join(lines[:12]) + lines[12][:7])
    header = json.loads((straight.folder / "answers.json").read_text("utf-8"))
    del header["sha256"]
    (broken / "answers.json").write_text(json.dumps(header), "utf-8")
    (broken / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 9.0}\n', "utf-8"
    )  # of a step that was not saved
    more = proxlm.load_config("distill", broken / "config.toml", {"run.resume": True})
    resumed = DistillTrainer(config=more).train()
    assert (broken / "answers.jsonl").read_bytes() == whole
    assert resumed.metrics["loss"] == straight.metrics["loss"]
    # Other settings, or a changed file, are no answers of this run.
    with pytest.raises(RunError, match="other prompts or settings"):
        DistillTrainer(config=replace(more, rollout=replace(more.rollout, temperature=0.5))).train()
    (broken / "answers.jsonl").write_bytes(whole.replace(b'"eos"', b'"stop"').replace(b'"length"', b'"eos"'))
    with pytest.raises(RunError, match="not as the run wrote it"):
        DistillTrainer(config=more).train()


def test_answers_of_an_earlier_run_are_taken(place, tmp_path, run):
    earlier = run.folder / "answers.jsonl"
    made = config(place, tmp_path / "run", 1, distill={"mode": "sequence", "answers": str(earlier)})
    other = DistillTrainer(config=made).train()
    assert (other.folder / "answers.jsonl").read_bytes() == earlier.read_bytes()
    assert verify_run(other.folder) == []
    asked_otherwise = replace(made, run=replace(made.run, folder=str(tmp_path / "hot"), seed=3))
    with pytest.raises(RunError, match="other prompts or settings"):
        DistillTrainer(config=asked_otherwise).train()
    (tmp_path / "answers.jsonl").write_bytes(earlier.read_bytes()[:-9])
    (tmp_path / "answers.json").write_bytes((run.folder / "answers.json").read_bytes())
    torn = replace(made.distill, answers=str(tmp_path / "answers.jsonl"))
    with pytest.raises(RunError, match="not all the answers"):
        DistillTrainer(
            config=replace(made, distill=torn, run=replace(made.run, folder=str(tmp_path / "torn")))
        ).train()


def test_loaded_models_prompts_and_a_second_opinion(tokenizer, tmp_path):
    teacher, student = tiny_model(tokenizer), tiny_model(tokenizer, seed=1)
    before = {name: p.clone() for name, p in teacher.network.named_parameters()}
    made = DistillConfig(
        rollout=RolloutSettings(max_new_tokens=6),
        data=DataSettings(eval_count=2),
        distill=DistillSettings(samples_per_prompt=2),
        train=SupervisedSettings(steps=2, validate_every=2),
        run=RunSettings(folder=str(tmp_path / "run"), tensorboard=False),
    )
    run = proxlm.DistillTrainer(teacher, WORDS, made, student=student).train()
    rows = [json.loads(line) for line in (run.folder / "answers.jsonl").read_text("utf-8").splitlines()]
    assert sum(row["part"] == "train" for row in rows) == 8
    assert all(torch.equal(before[name], p) for name, p in teacher.network.named_parameters())
    assert all(p.requires_grad for p in teacher.network.parameters())
    saved = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    assert any(
        not torch.equal(saved[n], p) for n, p in tiny_model(tokenizer, seed=1).network.state_dict().items()
    )


def test_one_model_cannot_be_both(tokenizer, tmp_path):
    model = tiny_model(tokenizer)
    made = DistillConfig(run=RunSettings(folder=str(tmp_path / "run")), data=DataSettings(eval_count=2))
    with pytest.raises(ModelError, match="one model"):
        DistillTrainer(model, WORDS, made, student=model).train()
    assert all(p.requires_grad for p in model.network.parameters())


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"model": {"teacher": ""}}, ConfigError, "model.teacher"),
        ({"data": {"prompts": ""}}, ConfigError, "data.prompts"),
        ({"text": {"train": ["records.jsonl"]}}, ConfigError, "not both"),
        (
            {"data": {"prompts": ""}, "text": {"train": ["x"]}, "distill": {"mode": "sequence"}},
            ConfigError,
            "sft",
        ),
        ({"distill": {"tokenizer": "new"}}, ConfigError, "distill.tokenizer"),
        ({"distill": {"beta": 0.3}}, ConfigError, "distill.beta"),
        ({"distill": {"mode": "sequence", "temperature": 2.0}}, ConfigError, "distill.temperature"),
        ({"data": {"eval_count": 0}}, DataError, "eval_count"),
        ({"scratch": replace(NEW, context=12)}, DataError, "scratch.context"),
        ({"model": {"teacher": "./nowhere"}}, ModelError, "model.teacher"),
    ],
)
def test_what_cannot_be_is_refused(place, tmp_path, more, error, match):
    with pytest.raises(error, match=match):
        DistillTrainer(config=config(place, tmp_path / "run", **more)).train()
