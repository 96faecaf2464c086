"""`proxlm new`: each kind of project is made, its tests pass, and its commands run in tiny form."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.config import NewConfig, load_config
from proxlm.jobs.new import commands_of

KINDS = get_args(get_type_hints(NewConfig)["kind"])
TINY = {
    "sft": ["--train.steps", "2", "--train.batch-tokens", "300", "--scratch.hidden", "16"],
    "pretrain": ["--train.steps", "2", "--train.batch-tokens", "300", "--new.hidden", "16"],
    "ppo": ["--ppo.steps", "1", "--ppo.batch-size", "4", "--ppo.epochs", "1", "--data.eval-count", "4"],
    "evaluate": ["--data.eval-count", "4", "--samples", "0"],
    "generate": ["--rollout.max-new-tokens", "4"],
    "check": ["--steps", "1", "--set", "ppo.batch_size=4", "--set", "data.eval_count=8"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_made_and_its_commands_run(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", f"my-{kind}", "--kind", kind]) == 0
    said = capsys.readouterr().out
    folder = place / f"my-{kind}"
    assert sorted(p.name for p in place.iterdir()) == [folder.name]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# my-{kind}\n")
    assert "PROJECT" not in readme
    commands = list(commands_of(readme))
    assert commands[0] == f"cd my-{kind}"
    assert all(line in said for line in commands)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran = []
    for line in commands[1:]:
        words = [word.removeprefix("$") for word in shlex.split(line, comments=True)]
        if words[0] == "proxlm":
            more = TINY[words[1]] if words[1] == "check" else [*TINY[words[1]], "--run.threads", "1"]
            assert main([*words[1:], *more]) == 0, line
        else:
            assert words == ["python", "-m", "pytest"]
            done = subprocess.run([sys.executable, *words[1:], "-q", "-p", "no:cacheprovider"], check=False)
            assert done.returncode == 0
        ran.append(words[1])
    assert {"check", "ppo", "evaluate", "-m"} <= set(ran)
    assert proxlm.load_run("runs/ppo").after is not None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_held_out_is_trained_on(kind: str, place: Path) -> None:
    assert main(["new", "it", "--kind", kind]) == 0
    data = {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in place.glob("it/data/*")
    }
    assert all(len(records) >= 24 for records in data.values())
    if kind != "game":
        prompts = {
            name: {json.dumps(record["prompt"]) for record in records} for name, records in data.items()
        }
        assert not prompts["train"] & prompts["held-out"]
        settings = load_config("ppo", place / "it" / "ppo.toml")
        assert settings.data.eval_count == len(data["held-out"])
    assert main(["new", "again", "--kind", kind]) == 0
    files = [
        p.relative_to(place / "it")
        for p in sorted((place / "it").rglob("*"))
        if p.is_file() and p.name != "README.md"
    ]
    assert all((place / "it" / f).read_bytes() == (place / "again" / f).read_bytes() for f in files)


def test_nothing_is_written_over(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "mine").mkdir()
    (place / "file").write_text("x", encoding="utf-8")
    os.symlink("nowhere", place / "link")
    for name in ("mine", "file", "link"):
        assert main(["new", name]) == 2
        assert f"{name}: is there already, and nothing is written over" in capsys.readouterr().err
    assert sorted(p.name for p in place.iterdir()) == ["file", "link", "mine"]
    assert not any((place / "mine").iterdir())


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "-x", "a b", "a\nb", "", "a" * 65, "/abs", "~", "a.toml", "a\x00"]
)
def test_names_are_checked(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", f"--name={name}"]) == 2
    said = capsys.readouterr().err
    assert "name" in said
    assert len(said.splitlines()) == 1
    assert not any(place.iterdir())


def test_a_name_in_any_script(place: Path) -> None:
    assert main(["new", "对句_2"]) == 0
    assert (place / "对句_2" / "README.md").read_text(encoding="utf-8").startswith("# 对句_2\n")


def test_what_cannot_be_written_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    assert main(["new", "it"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not any(place.iterdir())
