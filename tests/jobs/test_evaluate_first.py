"""What `proxlm evaluate` finds before any model is loaded, and what its rows say of their prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxlm.__main__ import main
from proxlm.data.tokenizer import train_tokenizer
from proxlm.models.save import save_language_model
from proxlm.models.source import ModelSource
from small_models import TEXTS, WORDS, tiny_model

SHORT = ["--model.device", "cpu", "--rollout.max-new-tokens", "4", "--samples", "0"]


@pytest.fixture
def place(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "one")
    records = [
        {"prompt": f"The {word}", "response": word, "kind": "ab"[i % 2]} for i, word in enumerate(WORDS)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.strip()


def evaluation(*arguments: str) -> list[str]:
    return ["evaluate", "--model.policy", "one", "--data.eval-prompts", "prompts.jsonl", *SHORT, *arguments]


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ModelSource) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelSource, "load", load)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_another_tokenizer_is_found_before_any_model_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_language_model(tiny_model(train_tokenizer(TEXTS[:2] * 20, 300, 128)), place / "other")
    said = fails(capsys, *evaluation("--models", "other"))
    assert "other: another tokenizer than one's: its token " in said
    assert "--responses FILE, and give both files to proxlm compare" in said
    assert len(said) <= 300


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("option", ["--output", "--responses"])
def test_a_file_that_cannot_be_written_is_found_before_any_model_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert "nowhere/x.json: cannot be written" in fails(capsys, *evaluation(option, "nowhere/x.json"))
    assert "cannot be written" in fails(
        capsys, "generate", "--model.policy", "one", "--data.prompts", "prompts.jsonl", "--output", "nowhere/x.json"
    )  # fmt: skip


@pytest.mark.usefixtures("nothing_is_loaded")
def test_tools_without_a_reward_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        *("ppo", "--model.policy", "one", "--data.prompts", "prompts.jsonl", "--data.eval-count", "2"),
        *("--environment.use", "tools", "--run.folder", "run"),
    ]
    said = fails(capsys, *run)
    assert (
        'environment.use = "tools": it pays nothing itself, so every reward would be 0; set reward.use'
        in said
    )
    assert not (place / "run").exists()


def test_tools_are_evaluated_without_a_reward_that_nobody_pays(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = [
        "--environment.use",
        "tools",
        "--environment.args.describe",
        "false",
        "--environment.max-turns",
        "1",
    ]
    assert main(evaluation(*tools, "--data.eval-count", "3")) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert "length" in names
    assert "reward" not in names


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_hold_short_fields_and_solved_examples_leave_the_prompt_as_it_is(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {
        "prompt": "The end",
        "response": "x" * 500,
        "kind": "c",
        "level": 3,
        "list": [1],
        "n": 0.5,
        "b": True,
    }
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(long))
    assert main(evaluation("--responses", "bare.jsonl")) == 0
    shots = ["--data.examples", "prompts.jsonl", "--data.shots", "2", "--data.on-long-prompt", "fewer_shots"]
    assert main(evaluation("--responses", "shots.jsonl", *shots)) == 0
    bare, few = rows(place / "bare.jsonl"), rows(place / "shots.jsonl")
    assert [row["prompt"] for row in bare] == [row["prompt"] for row in few]
    assert all("read" not in row for row in bare)
    assert all(
        row["read"].endswith(row["prompt"]) and len(row["read"]) > len(row["prompt"]) for row in few[:3]
    )
    assert [row["fields"]["kind"] for row in bare] == ["a", "b"] * 3 + ["c"]
    assert bare[-1]["fields"] == {"prompt": "The end", "kind": "c", "level": 3, "n": 0.5, "b": True}
    capsys.readouterr()
    assert main(["compare", "bare.jsonl", "shots.jsonl"]) == 0
    assert "7 prompts, paired" in capsys.readouterr().out
