"""`proxlm distill` with a teacher behind a URL."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import proxlm
from judge_server import reply, send, serving
from proxlm.config import (
    DataSettings,
    DistillConfig,
    DistillSettings,
    ModelSettings,
    NewModelSettings,
    RolloutSettings,
    RunSettings,
    SupervisedSettings,
    TeacherSettings,
)
from proxlm.errors import ConfigError, RunError
from proxlm.jobs.distill import DistillTrainer

PROMPTS = [f"Say the number {i}." for i in range(14)]


def config(folder: Path, url: str, **more: Any) -> DistillConfig:
    return DistillConfig(
        scratch=NewModelSettings(type="llama", vocabulary=300, hidden=16, layers=1, heads=2, context=64),
        model=ModelSettings(device="cpu", **more.pop("model", {})),
        teacher=TeacherSettings(**{"url": url, "name": "big", "concurrency": 2, **more.pop("teacher", {})}),
        distill=DistillSettings(**{"mode": "sequence", "tokenizer": "new", **more.pop("distill", {})}),
        data=DataSettings(prompts="prompts.jsonl", eval_count=2, **more.pop("data", {})),
        rollout=RolloutSettings(**{"max_new_tokens": 12, "temperature": 0.0, **more.pop("rollout", {})}),
        train=SupervisedSettings(steps=2, batch_tokens=200, validate_every=2),
        run=RunSettings(folder=str(folder), tensorboard=False, **more),
    )


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(lines, "utf-8")


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()]


def test_its_texts_are_learnt(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEACHER_KEY", "a-key-of-the-teacher")

    first, together = iter(range(2)), threading.Barrier(2)

    def answer(handler, question):
        if next(first, None) is not None:
            together.wait(60)
        if question == PROMPTS[3]:
            return reply(handler, "It is thr", finish="length")
        if question == PROMPTS[4]:
            return reply(handler, "", finish="content_filter")
        return f"It is {question.split()[-1]}"

    with serving(answer) as server:
        teacher = {"key": "env:TEACHER_KEY", "extra": {"top_k": 3}}
        made = config(tmp_path / "run", server.url, teacher=teacher, rollout={"top_p": 0.9, "stop": ["#"]})
        run = DistillTrainer(config=made).train()
    assert sorted(server.questions) == sorted(PROMPTS)
    assert set(server.keys) == {"Bearer a-key-of-the-teacher"}
    assert server.most_at_once == 2
    body = {key: value for key, value in server.bodies[0].items() if key != "messages"}
    expected = {"model": "big", "max_tokens": 12, "temperature": 0.0, "top_p": 0.9, "stop": ["#"], "top_k": 3}
    assert body == expected
    found = {row["prompt"]: row for row in answers(run.folder)}
    assert found[PROMPTS[5]]["response"] == "It is 5."
    assert found[PROMPTS[3]]["finish"] == "length"
    assert found[PROMPTS[4]]["response"] == ""
    assert "1 of 14 answers are blank" in capsys.readouterr().out
    assert run.model is not None
    assert [value for value in run.metrics["validation_cross_entropy"] if value is not None]
    written = "".join(p.read_text("utf-8", "replace") for p in run.folder.rglob("*.*") if p.is_file())
    assert "a-key-of-the-teacher" not in written


def test_messages_are_sent_and_an_existing_student_reads_them(tmp_path):
    lines = "".join(
        json.dumps({"prompt": [{"role": "user", "content": prompt}]}) + "\n" for prompt in PROMPTS
    )
    (tmp_path / "prompts.jsonl").write_text(lines, "utf-8")
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
                        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    with serving(lambda _handler, _question: "Yes.") as server:
        data = {"chat": True, "chat_template": str(template), "system": "Be short."}
        run = DistillTrainer(config=config(tmp_path / "run", server.url, data=data)).train()
    assert [m["role"] for m in server.bodies[0]["messages"]] == ["system", "user"]
    assert "[user]Say the number" in run.samples[0]["prompt"]


def test_a_server_that_fails_ends_the_run_and_what_was_answered_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("proxlm.rewards.judge_client.FIRST_WAIT", 0.0)
    seen: list[str] = []

    def answer(handler, question):
        seen.append(question)
        return send(handler, 401, "no") if len(seen) > 9 else f"It is {question.split()[-1]}"

    with serving(answer) as server:
        made = config(tmp_path / "run", server.url)
        with pytest.raises(RunError, match=r"teacher.url: .* 401") as caught:
            DistillTrainer(config=made).train()
    assert len(str(caught.value)) <= 300
    assert len(answers(tmp_path / "run")) == 8  # two groups of four
    with serving(lambda _handler, question: f"It is {question.split()[-1]}") as server:
        more = proxlm.load_config("distill", tmp_path / "run" / "config.toml", {"run.resume": True})
        with pytest.raises(RunError, match="other prompts or settings"):  # another server is another teacher
            DistillTrainer(config=replace(more, teacher=replace(more.teacher, url=server.url))).train()
        assert server.questions == []


def test_the_most_requests_are_kept_to(tmp_path):
    with serving(lambda _handler, _question: "Yes.") as server:
        made = config(tmp_path / "run", server.url, teacher={"max_requests": 5})
        with pytest.raises(RunError, match="max_requests = 5 are made"):
            DistillTrainer(config=made).train()
    assert len(server.questions) == 5


def test_a_resume_asks_for_the_missing_ones_alone(tmp_path):
    with serving(lambda _handler, question: f"It is {question.split()[-1]}") as server:
        made = config(tmp_path / "run", server.url, teacher={"max_requests": 9})
        with pytest.raises(RunError, match="max_requests"):
            DistillTrainer(config=made).train()
        asked = len(server.questions)
        more = proxlm.load_config(
            "distill", tmp_path / "run" / "config.toml", {"run.resume": True, "teacher.max_requests": 0}
        )
        run = DistillTrainer(config=more).train()
        assert len(server.questions) == asked + 14 - 8
        straight = DistillTrainer(config=config(tmp_path / "straight", server.url)).train()
    assert (run.folder / "answers.jsonl").read_bytes() == (straight.folder / "answers.jsonl").read_bytes()
    assert run.metrics["loss"] == straight.metrics["loss"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"distill": {"mode": "logits"}}, "gives texts alone"),
        ({"distill": {"tokenizer": "teacher"}}, "set it to new"),
        ({"model": {"teacher": "folder"}}, "not both"),
        ({"teacher": {"name": ""}}, "teacher.name"),
        ({"teacher": {"key": "plain"}}, "env:NAME"),
        ({"teacher": {"extra": {"stop": 1}}}, "teacher.extra.stop"),
        ({"rollout": {"top_k": 5}}, "is not told this one"),
        ({"teacher": {"url": "ftp://x"}}, "http:// or https://"),
        ({"distill": {"samples_per_prompt": 2}}, "all the same"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, more, match):
    with pytest.raises(ConfigError, match=match):
        DistillTrainer(config=config(tmp_path / "run", "http://127.0.0.1:1", **more)).train()
    assert not (tmp_path / "run").exists()
