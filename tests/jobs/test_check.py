"""`proxlm check`: planted faults are found, each with the right line, and nothing is left behind."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from test_jobs import place  # noqa: F401

from proxlm.__main__ import main
from proxlm.data.token_view import boundaries, lengths_in_words
from proxlm.jobs.estimate import Times

BASE = ["check", "recipe.toml"]


@pytest.fixture(autouse=True)
def recipe(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with a model, prompts, a reward and a recipe, and one of its own for what is temporary."""
    (place / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    file = place / "recipe.toml"
    file.write_text('job = "ppo"\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
    return file


def check(capsys: pytest.CaptureFixture[str], *more: str, status: int = 0) -> str:
    before = sorted(map(str, Path().rglob("*")))
    assert main([*BASE, *more]) == status
    captured = capsys.readouterr()
    assert sorted(map(str, Path().rglob("*"))) == before  # nothing lasting is written
    return captured.out


def test_a_recipe_without_faults(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = check(capsys)
    assert "proxlm ppo, recipe.toml" in said
    assert "18 prompts to train on, 6 held out" in said
    assert "median" in said
    assert said.count("│") > 8
    assert "reward " in said
    assert "MiB" in said
    assert "4 steps, 2 evaluations" in said
    assert said.endswith("no error\n")
    assert "no error" in check(capsys, "--steps", "0")
    assert main(["ppo", "recipe.toml"]) == 0  # and it runs


FAULTS: dict[str, tuple[list[str], list[str]]] = {
    "unknown setting": (["--set", "ppo.stepz=3"], ["settings", "ppo.stepz", "ppo.steps"]),
    "impossible value": (["--set", "ppo.lam=3"], ["settings", "ppo.lam = 3"]),
    "without effect": (["--set", "ppo.kl_target=3"], ["settings", "ppo.kl_target", "has no effect with"]),
    "no such data": (["--set", "data.prompts=gone.jsonl"], ["data", "gone.jsonl"]),
    "no such model": (["--set", "model.policy=./gone"], ["./gone", "no such folder"]),
    "no such reward": (["--set", "reward.use=reward.py:scorn"], ["reward.py", "scorn"]),
    "wrong field": (["--set", "data.prompt_field=promt"], ["prompts.jsonl", "promt"]),
    "no room": (["--set", "rollout.max_new_tokens=200"], ["rollout.max_new_tokens = 200", "no room"]),
    "prompts too long": (["--set", "data.max_prompt_tokens=8"], ["too long", "may have 8 tokens"]),
    "no such template": (["--set", "data.chat=true", "--set", "data.chat_template=gone.jinja"], ["gone.jinja"]),
    "nothing to set aside": (["--set", "data.eval_count=99"], ["24 different prompts", "data.eval_count = 99"]),
    "not a setting": (["--set", "ppo.steps"], ["write section.key=VALUE"]),
    "held run": (["--set", "run.folder=taken"], ["taken", "already holds"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_settings(recipe: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    (recipe.parent / "taken").mkdir()
    (recipe.parent / "taken" / "config.toml").touch()
    more, wanted = FAULTS[fault]
    said = check(capsys, "--steps", "1", *more, status=1)
    line = next(line for line in said.splitlines() if "ERROR" in line and all(w in line for w in wanted[-1:]))
    assert all(text in said for text in wanted)
    assert len(line) <= 310
    assert said.splitlines()[-1].endswith("the run would not begin, or would end early")


SCORE = "def score(completions):\n"
FILES: dict[str, tuple[str, str, list[str]]] = {
    "not TOML": ("recipe.toml", 'job = "ppo"\n[model\n', ["recipe.toml: line 2: not valid TOML"]),
    "another command": ("recipe.toml", 'job = "pppo"\n', ['"pppo"', "did you mean ppo?"]),
    "no command": ("recipe.toml", "[model]\n", ["names no command"]),
    "bad records": (
        "prompts.jsonl",
        '{"prompt": "The cat"}\n{"prompt": 3}\n{"prompt": "a b"}\n{"prompt"\n{"prompt": ""}\n'
        + "".join(json.dumps({"prompt": f"A dog {i}"}) + "\n" for i in range(20)),
        ["prompts.jsonl:2:", "prompts.jsonl:4:", "prompts.jsonl:5:", "6 held out"],
    ),
    "reward raises": ("reward.py", f"{SCORE}    x = 1\n    return 1 / 0\n", ["ZeroDivisionError", "reward.py:3"]),
    "reward of a wrong length": ("reward.py", f"{SCORE}    return [1.0]\n", ["returned 1 score for"]),
    "reward is none": ("reward.py", f"{SCORE}    return [None] * len(completions)\n", ["returned None"]),
    "not Python": ("reward.py", "def score(completions:\n", ["reward.py:1"]),
    "model without weights": ("model/model.safetensors", "", ["model"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_faults_of_files(recipe: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    name, content, wanted = FILES[fault]
    (recipe.parent / name).write_text(content, encoding="utf-8")
    said = check(capsys, "--steps", "1", status=1)
    assert "ERROR" in said
    assert all(text in said for text in wanted), said


def test_what_may_run_but_learns_nothing_is_a_warning(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "reward.py").write_text("def score(completions):\n    return [0.5] * len(completions)\n")
    said = check(capsys, "--set", "data.eval_count=10")
    assert "warning  all 10 responses before the run have the reward 0.5" in said
    lines = [json.dumps({"prompt": f"The cat {i} "}) for i in range(24)]
    (recipe.parent / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = check(
        capsys,
        "--steps",
        "1",
        "--set",
        "ppo.advantage=grpo",
        "--set",
        "ppo.samples_per_prompt=2",
        "--set",
        "ppo.lam=0.9",
    )
    assert "warning  a text that the model continues ends in" in said
    assert "warning  ppo.lam: no effect with ppo.advantage = grpo" in said


def test_bad_records_are_counted_where_the_recipe_leaves_them_out(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"prompt": ""}\n{"prompt": 7}\n')
    said = check(capsys, "--steps", "1", "--set", "data.on_bad_record=skip")
    assert "1 left out, empty" in said
    assert "no error" in said


PAIRS = '[text]\ntrain = ["pairs.jsonl"]\n'
COMPARED = 'chosen_field = "response"\nrejected_field = "worse"\n'
SUPERVISED = {
    "sft": PAIRS,
    "pretrain": '[text]\ntrain = ["texts.txt"]\n',
    "reward": f"{PAIRS}{COMPARED}[test]\nbaselines = false\n",
    "dpo": f"{PAIRS}{COMPARED}",
}


@pytest.mark.parametrize("job", SUPERVISED)
def test_jobs_that_learn_from_data(recipe: Path, capsys: pytest.CaptureFixture[str], job: str) -> None:
    pairs = [{"prompt": f"The cat {i}", "response": " sat on the mat.", "worse": " ran."} for i in range(40)]
    (recipe.parent / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (recipe.parent / "texts.txt").write_text("The cat sat on the mat. " * 200, encoding="utf-8")
    block = "block = 16\n" if job == "pretrain" else ""
    recipe.write_text(
        f'job = "{job}"\n[model]\npolicy = "model"\ndevice = "cpu"\n{SUPERVISED[job]}'
        f"[train]\nsteps = 100\nbatch_tokens = 200\nvalidate_every = 50\n{block}"
        '[run]\nfolder = "run"\nthreads = 1\n',
        encoding="utf-8",
    )
    said = check(capsys)
    assert "about" in said
    assert "100 steps, 2 evaluations" in said
    assert "│" in said
    assert "no error" in said
    with open("pairs.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"prompt": "x", "response": 3, "worse": ""}\n')
    if job != "pretrain":
        assert "pairs.jsonl:41:" in check(capsys, status=1)


def test_commands_that_only_use_models(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(
        'job = "evaluate"\noutput = "found.json"\n[model]\npolicy = "model"\n'
        '[data]\neval_prompts = "prompts.jsonl"\n',
        encoding="utf-8",
    )
    said = check(capsys)
    assert "0 prompts to train on, 24 held out" in said
    assert "parameters, loaded" in said
    assert "nowhere/x.json: cannot be written" in check(capsys, "--set", "output=nowhere/x.json", status=1)
    questions = ['{"prompt": "a", "c": ["x", "y"], "answer": 0}', '{"prompt": "b", "c": 3, "answer": 0}']
    (recipe.parent / "questions.jsonl").write_text("\n".join(questions), encoding="utf-8")
    asked = ["--set", "choices.field=c", "--set", "data.eval_prompts=questions.jsonl"]
    said = check(capsys, *asked, "--set", "models=./gone", status=1)
    assert "questions.jsonl:2:" in said
    assert "1 question" in said
    assert "./gone" in said
    missing = check(capsys, "--set", "data.eval_prompts=gone.jsonl", status=1)
    assert "data.eval_prompts: gone.jsonl: no such file" in missing


def test_control(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gymnasium")
    recipe.write_text('job = "control"\n[environment]\nid = "CartPole-v1"\nsteps = 20000\n', encoding="utf-8")
    assert "a step" in check(capsys)


def test_the_prediction_of_a_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How near it comes is measured where nothing else runs (docs/check.md); here: that it adds up."""
    assert Times(2.0, 0.5, 10, 1.0, 3, 4.0).total == 2.0 + 5.0 + 3.0 + 4.0
    said = check(capsys, "--set", "evaluation.every=1", "--set", "ppo.steps=5")
    assert "5 steps, 7 evaluations" in said


def test_boundaries_of_tokens(tokenizer: Any) -> None:
    ids = tokenizer("The cat\n处处 \x1b[31m", add_special_tokens=False)["input_ids"]
    shown = boundaries(tokenizer, ids)
    assert "\x1b" not in shown
    assert "\\n" in shown
    assert "\\x1b" in shown
    assert "处" in shown
    pieces = [piece.partition("(")[0] for piece in shown.split("│")]
    assert "".join(pieces).replace("\\n", "\n").replace("\\x1b", "\x1b") == tokenizer.decode(ids)
    assert "… 20 tokens …" in boundaries(tokenizer, ids[:1] * 100)
    assert boundaries(tokenizer, [tokenizer.eos_token_id]) == tokenizer.eos_token


def test_lengths_in_words() -> None:
    first, second = lengths_in_words([1, 2, 2, 3, 40], "prompt")
    assert first == "prompts of 1 to 40 tokens, median 2, 95% up to 40, in all 48"
    counts = [int(part.rpartition(": ")[2]) for part in second.split("  ")]
    assert sum(counts) == 5
    assert counts[0] == 4
    assert lengths_in_words([], "prompt") == []
    assert lengths_in_words([7], "example")[1] == "7: 1"


def test_a_stop_says_that_nothing_was_written(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from proxlm.train.ppo.loop import PPOLoop

    step = PPOLoop.step

    def stopped(self: PPOLoop, *arguments: Any) -> Any:
        os.kill(os.getpid(), 2)
        return step(self, *arguments)

    monkeypatch.setattr(PPOLoop, "step", stopped)
    assert main(BASE) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert not any(Path("tmp").iterdir())
