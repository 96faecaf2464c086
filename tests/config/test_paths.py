"""Relative paths: of a recipe to its folder, of the command line to the current directory; `~` in one place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxlm.config import JOBS, DataSettings, ModelSettings, PPOConfig, RunSettings, load_config
from proxlm.config.paths import absolute, short
from proxlm.config.paths import path_settings as paths_of
from proxlm.config.tree import is_section, kinds
from proxlm.config.values import toml_value
from proxlm.errors import ConfigError

RECIPE = """
job = "ppo"
[model]
policy = "m"
critic_from = "../critic"
[data]
prompts = "p.jsonl"
eval_prompts = "hf:owner/name:test"
chat_template = "sub/t.jinja"
[environment]
use = "games.py:Game"
[reward.terms.mine]
use = "reward.py:score"
[reward.terms.model]
use = "reward_model"
args = { path = "./classifier", label = "../label" }
[ppo]
advantage = "mine.py:advantage"
loss = "ppo"
[ptx]
coef = 0.1
text = ["a.txt", "/abs/b.txt"]
[run]
folder = "out"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    (folder / "m").mkdir(parents=True)
    (folder / "r.toml").write_text(RECIPE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder / "r.toml"


def test_a_recipes_paths_are_relative_to_the_recipe(recipe: Path) -> None:
    config, here = load_config(PPOConfig, recipe), recipe.parent
    assert config.model.policy == str(here / "m")
    assert config.model.critic_from == str(here.parent / "critic")
    assert config.data.prompts == str(here / "p.jsonl")
    assert config.data.eval_prompts == "hf:owner/name:test"
    assert config.data.chat_template == str(here / "sub" / "t.jinja")
    assert config.environment.use == f"{here / 'games.py'}:Game"
    assert config.reward.terms["mine"].use == f"{here / 'reward.py'}:score"
    assert config.reward.terms["model"].use == "reward_model"
    assert config.reward.terms["model"].args == {"path": str(here / "classifier"), "label": "../label"}
    assert (config.ppo.advantage, config.ppo.loss) == (f"{here / 'mine.py'}:advantage", "ppo")
    assert config.ptx.text == [str(here / "a.txt"), "/abs/b.txt"]
    # What is written is relative to the current directory, wherever it is said.
    assert config.run.folder == "out"


def test_a_relative_name_of_the_recipe_does_not_matter(recipe: Path) -> None:
    assert load_config(PPOConfig, "../recipes/r.toml") == load_config(PPOConfig, recipe)


def test_a_name_on_the_hub_stays_one(recipe: Path) -> None:
    recipe.write_text('[model]\npolicy = "owner/name"\n[data]\nprompts = "p"\n')
    assert load_config(PPOConfig, recipe).model.policy == "owner/name"


def test_the_command_line_and_python_are_relative_to_the_current_directory(recipe: Path) -> None:
    config = load_config(
        PPOConfig, recipe, {"data.prompts": "q.jsonl"}, ["--model.policy", "m", "--ptx.text", "c"]
    )
    assert (config.data.prompts, config.model.policy, config.ptx.text) == ("q.jsonl", "m", ["c"])


def test_the_home_folder_is_filled_in_everywhere(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    recipe.write_text(
        '[model]\npolicy = "~/m"\n[reward]\nuse = "~/r.py:f"\nargs = {path = "~/c", note = "~"}\n'
    )
    config = load_config(PPOConfig, recipe, {"run.folder": "~/run"}, ["--data.prompts", "~/p.jsonl"])
    assert config.model.policy == "/home/someone/m"
    assert (config.reward.use, config.reward.args) == (
        "/home/someone/r.py:f",
        {"path": "/home/someone/c", "note": "~"},
    )
    assert (config.run.folder, config.data.prompts) == ("/home/someone/run", "/home/someone/p.jsonl")


def is_known(section: Any, name: str) -> bool:
    """Whether a job has a setting of this name."""
    first, _, rest = name.partition(".")
    return first in kinds(section) and (not rest or is_known(kinds(section)[first], rest))


def path_settings() -> list[tuple[str, str, Any]]:
    """Job, key and declared type of every setting that is a path."""

    def below(section: Any, at: str) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(section):
            kind = kinds(section)[field.name]
            if is_section(kind):
                yield from below(kind, f"{at}{field.name}.")
            elif field.metadata.get("path"):
                yield f"{at}{field.name}", kind

    return [(job, key, kind) for job, config in JOBS.items() for key, kind in below(config, "")]


@pytest.mark.parametrize(("job", "key", "kind"), path_settings())
@pytest.mark.parametrize("where", ["recipe", "overrides", "command line"])
def test_the_home_folder_in_every_setting_that_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, key: str, kind: Any, where: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")

    def loaded(path: str) -> Any:
        value = [path] if kind == list[str] else {"path": path} if kind == dict[str, Any] else path
        needed: dict[str, Any] = {
            "model.policy": "m",
            "data.prompts": "p",
            "text.train": ["t"],
            "models": ["m"],
        }
        needed |= {
            "prompt": "x",
            "folder": "f",
            "environment.id": "CartPole-v1",
            "runs": ["a"],
            "recipe": "r",
            "model": "m",
            "input": ["i"],
            "space": "ppo",
            "over": ["optim.lr=1"],
        }
        if job in ("data", "compress", "export"):
            needed |= {"output": "o", "cost.text": ["t"]}
        if job == "classify":
            needed |= {"output": "o", "data.train": ["t"]}
            if key == "classifier":  # applied to texts, it learns from none
                needed |= {"data.eval": ["e"]}
                del needed["data.train"], needed["model"]
        if job == "distill":  # prompts to answer or texts to read, not both, and a new student or a given one
            needed["model.teacher"] = "t"
            del needed["data.prompts" if key.startswith("text.") else "text.train"]
            if key.startswith("scratch."):
                del needed["model.policy"]
                needed["scratch.type"] = "llama"
        if key in ("new.tokenizer", "new.embeddings.file"):
            del needed["model.policy"]  # beside a model that is continued it has no effect
        if key == "output":
            del needed["prompt"]  # beside it a recipe's file for responses has no effect, and is left out
        known = {
            name: v for name, v in needed.items() if name.split(".")[0] in kinds(JOBS[job]) and name != key
        }
        known = {
            n: v
            for n, v in known.items()
            if (
                not is_section(kinds(JOBS[job])[n])
                if "." not in n
                else is_section(kinds(JOBS[job])[n.split(".")[0]])
                and n.split(".")[1] in kinds(kinds(JOBS[job])[n.split(".")[0]])
            )
        }
        recipe = tmp_path / "r.toml"
        recipe.write_text(f"{key} = {toml_value(value)}\n" if where == "recipe" else "")
        arguments = [f"--{key}", value if isinstance(value, str) else toml_value(value)]
        return load_config(
            job,
            recipe if where == "recipe" else None,
            known | ({key: value} if where == "overrides" else {}),
            arguments if where == "command line" else [],
        )

    try:
        config = loaded("~/x.py:f")
    except ConfigError as error:  # settings that cannot be combined; the path in the message is expanded
        config = error
    if isinstance(config, ConfigError):
        assert "/home/someone/x.py:f" in str(config)
        return
    for name in key.split("."):
        config = getattr(config, name)
    assert config in ("/home/someone/x.py:f", ["/home/someone/x.py:f"], {"path": "/home/someone/x.py:f"})
    with pytest.raises(ConfigError, match=r'"~nobody-of-this-name/x": ~nobody-of-this-name is no user'):
        loaded("~nobody-of-this-name/x")


def test_what_a_run_writes_down_is_absolute(recipe: Path) -> None:
    Path("m").mkdir()
    Path("p.txt").write_text("p\n")
    config = absolute(
        PPOConfig(
            model=ModelSettings(policy="m", critic_from="owner/name"),
            data=DataSettings(prompts="p.txt", eval_prompts="texts given in Python"),
            run=RunSettings(folder="out"),
        )
    )
    here = os.getcwd()
    assert (config.model.policy, config.model.critic_from) == (f"{here}/m", "owner/name")
    assert (config.data.prompts, config.data.eval_prompts) == (f"{here}/p.txt", "texts given in Python")
    assert config.run.folder == f"{here}/out"


def test_what_is_shown_is_short(recipe: Path) -> None:
    here = os.getcwd()
    assert short(f"{here}/runs/a/policy") == "runs/a/policy"
    assert (short(str(recipe)), short("owner/name"), short(here)) == (str(recipe), "owner/name", here)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("3", "job: expected text, got 3"),
        ('"pppo"', 'job = "pppo": unknown job; did you mean ppo?'),
        ('"control"', 'job = "control": these are the settings of proxlm control, not of proxlm ppo'),
    ],
)
def test_the_job_of_a_file_is_checked(recipe: Path, job: str, message: str) -> None:
    recipe.write_text(f"job = {job}\n" + RECIPE.replace('job = "ppo"', ""))
    with pytest.raises(ConfigError) as caught:
        load_config("ppo", recipe)
    assert str(caught.value) == f"{recipe}: {message}"


def test_a_rubric_or_schema_is_a_file_of_the_recipes_folder_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    recipe.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (recipe / "rubric.txt").write_text("{response}", encoding="utf-8")
    (elsewhere / "own.txt").write_text("{response}", encoding="utf-8")
    text = """
    model = {policy = "m"}
    data = {prompts = "p"}
    [reward.terms.file]
    use = "judge"
    args = {rubric = "rubric.txt"}
    [reward.terms.text]
    use = "judge"
    args = {rubric = "Rate {response}"}
    [reward.terms.elsewhere]
    use = "judge"
    args = {rubric = "own.txt"}
    """
    (recipe / "r.toml").write_text(text, encoding="utf-8")
    terms = load_config("ppo", recipe / "r.toml").reward.terms
    assert {name: term.args["rubric"] for name, term in terms.items()} == {
        "file": str(recipe / "rubric.txt"),
        "text": "Rate {response}",
        "elsewhere": "own.txt",  # of the current directory, as on the command line
    }


def test_arguments_that_name_a_function_in_a_file_are_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "rival.py").write_text("def move(told): return '0'\n")
    (folder / "r.toml").write_text(
        'job = "ppo"\n[model]\npolicy = "m"\n[environment]\nuse = "textarena:TicTacToe-v0"\n'
        'args = { opponent = "rival.py:move", tools = ["calculator", "rival.py:move"], note = "a: b" }\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(PPOConfig, folder / "r.toml")
    there = f"{folder / 'rival.py'}:move"
    assert config.environment.use == "textarena:TicTacToe-v0"
    assert config.environment.args == {"opponent": there, "tools": ["calculator", there], "note": "a: b"}
    found = {p.key: (p.kind, p.value) for p in paths_of(config) if p.key.startswith("environment.args")}
    assert found == {
        "environment.args.opponent": ("function", there),
        "environment.args.tools[1]": ("function", there),
    }
