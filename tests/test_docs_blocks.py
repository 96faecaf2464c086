"""Every code block of README, CONTRIBUTING and docs: Python runs, settings load, commands parse.

Python blocks of a page run one after another in one namespace, in a temporary folder, with small stand-ins for the
models and data that the page speaks of. Nothing that a shell block says is run: its commands, settings, make targets,
extras and scripts must exist.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import proxlm
from markdown_blocks import PAGES, ROOT, Block, all_blocks, blocks_of
from proxlm.__main__ import JOB_MODULES
from proxlm.config import JOBS, PPOConfig, load_config

LANGUAGES = {"python", "toml", "bash", "json", "text"}
SHELL = all_blocks("bash")

# Pages whose Python sessions or examples have a test of their own, which runs them.
OWN_TESTS = {
    "docs/rewards.md": "tests/rewards/test_rewards_page.py",
    "docs/data.md": "tests/data/test_data_page.py",
    "docs/sandbox.md": "tests/sandbox/test_sandbox_page.py",
    "docs/algorithms.md": "tests/test_docs_example.py",
}


def place(block: Block) -> str:
    return block.place


def test_every_block_names_its_language() -> None:
    """An indented block, or a fence without a language, would be looked at by nobody: output is marked as text."""
    for page in PAGES:
        assert {block.language for block in blocks_of(page)} <= LANGUAGES, page.name
        outside = re.sub(
            r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        code = r"^    .*\b(?:proxlm [a-z]+ |pip install|python \S+\.py|import ).*$"
        assert re.findall(code, outside, re.MULTILINE) == [], page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert [x for x in links if x and "://" not in x and not (page.parent / x).exists()] == []


# --- Python ---


SHORT = {
    "model.device": "cpu",
    "ppo.steps": 1,
    "ppo.batch_size": 8,
    "ppo.epochs": 1,
    "ppo.minibatches": 2,
    "data.eval_count": 4,
    "rollout.max_new_tokens": 8,
    "run.tensorboard": False,
}


def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let load_config shorten what a page's own settings would train for minutes."""

    def load(job: Any, file: Any = None, overrides: Any = None, arguments: Any = ()) -> Any:
        more = SHORT if job in ("ppo", JOBS["ppo"]) else {}
        return load_config(job, file, {**(overrides or {}), **more}, arguments)

    def ppo_config(**sections: Any) -> Any:
        config = PPOConfig(**sections)
        for key, value in SHORT.items():
            section, name = key.split(".")
            config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        return config

    monkeypatch.setattr(proxlm, "load_config", load, raising=False)
    monkeypatch.setattr(proxlm, "PPOConfig", ppo_config, raising=False)


def readme(folder: Path, story_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """After `make demo`: its model and its prefixes."""
    short_runs(monkeypatch)
    demo = folder / "runs" / "demo"
    demo.mkdir(parents=True)
    (demo / "pretrain").mkdir()
    (demo / "pretrain" / "policy").symlink_to(story_model)
    for name in ("prefixes", "held-out"):
        rows = [f'{{"prompt": "{name} {n} ="}}\n' for n in range(20)]
        (demo / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return {}


def doctor(folder: Path, story_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    rows = [{"step": float(step), "reward": 1.0, "reward_std": 0.0} for step in range(1, 9)]
    return {"config": PPOConfig(), "rows": rows,
            "step": 9.0, "metrics": rows[-1]}  # fmt: skip


PREAMBLES: dict[str, Callable[[Path, Path, pytest.MonkeyPatch], dict[str, Any]]] = {
    "README.md": readme,
    "README.zh.md": readme,
    "docs/doctor.md": doctor,
}


# What a page's blocks import that not every developer has.
EXTRAS = {"docs/reasoning.md": "reasoning_gym"}


@pytest.mark.parametrize(
    "page",
    sorted({block.page for block in all_blocks("python")} - set(OWN_TESTS)),
)
def test_python_blocks_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story_model: Path
) -> None:
    if page in EXTRAS:
        pytest.importorskip(EXTRAS[page])
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    namespace: dict[str, Any] = {"__name__": "page"}
    namespace |= PREAMBLES.get(page, lambda *_: {})(tmp_path, story_model, monkeypatch)
    for block in blocks_of(ROOT / page):
        if block.language == "python":
            if name := re.match(r"# (\w+\.py)\n", block.text):
                Path(name[1]).write_text(block.text, encoding="utf-8")
            exec(compile("\n" * block.line + block.text, page, "exec"), namespace)


def session_or_script(text: str) -> str:
    """The Python of a block; of a session what was entered, without what was printed."""
    if not text.startswith(">>>"):
        return text
    lines = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", text, re.MULTILINE)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("block", all_blocks("python"), ids=place)
def test_python_blocks_use_public_names_only(block: Block) -> None:
    """`__all__` is the promise: what a page shows must be in it."""
    for node in ast.walk(ast.parse(session_or_script(block.text))):
        if isinstance(node, ast.Import):
            assert [alias.name for alias in node.names if alias.name.startswith("proxlm.")] == []
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "proxlm":
            assert node.module == "proxlm"
            assert {alias.name for alias in node.names} <= set(proxlm.__all__)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "proxlm"
        ):
            assert node.attr in proxlm.__all__


def test_pages_with_a_test_of_their_own() -> None:
    for page, test in OWN_TESTS.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), page


# --- settings ---


def job_of(block: Block, settings: dict[str, Any]) -> str:
    """The job that a fragment of settings belongs to: as it says, else by its sections."""
    if "job" in settings:
        return str(settings["job"])
    if block.page == "docs/reward-models.md":
        return "ppo" if "reward" in settings else "reward"
    if block.page == "docs/distillation.md":
        return "distill"
    if "text" in settings or "train" in settings:
        return "sft" if "scratch" in settings else "pretrain"
    return "control" if block.page == "docs/control.md" else "ppo"


# What a fragment leaves to the rest of a recipe.
REST: dict[str, dict[str, Any]] = {
    "ppo": {"model.policy": "tiny", "data.prompts": "prompts.txt"},
    "sft": {"model.policy": "tiny", "text.train": ["pairs.jsonl"]},
    "reward": {"model.policy": "tiny", "text.train": ["pairs.jsonl"]},
    "dpo": {"model.policy": "tiny", "text.train": ["pairs.jsonl"]},
    "distill": {"data.prompts": "prompts.txt"},
    "pretrain": {"text.train": ["texts"]},
    "compare": {"reward.use": "length"},
    "folds": {},
    "classify": {},
    "compress": {},
    "search": {},
    "sweep": {},
    "probe": {},
    "launch": {},
    "check": {},
    "plan": {},
    "data": {},
    "evaluate": {"models": ["tiny"], "data.eval_prompts": "prompts.txt"},
    "generate": {"model.policy": "tiny", "prompt": "Once"},
    "control": {"environment.id": "CartPole-v1"},
}


@pytest.mark.parametrize("block", all_blocks("toml"), ids=place)
def test_settings_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tomllib.loads(block.text)
    job = job_of(block, settings)
    file = tmp_path / "settings.toml"
    file.write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    load_config(job, file, {key: value for key, value in REST[job].items() if not given(settings, key)})


def given(settings: dict[str, Any], key: str) -> bool:
    """Whether the dotted key is among the settings."""
    section, _, name = key.partition(".")
    return section in settings and (not name or name in settings[section])


# --- commands ---


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command: lines that end with a backslash go on, comments are off, loops are unrolled once."""
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        line = re.sub(r"^for (\w+) in (\S+)[^;]*; do (.*); done$", r"\3", line.strip())
        for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*$", "", line)):
            words = shlex.split(re.sub(r"\$\w+|\bS\b", "0", part))
            if words:
                yield words


def stand_ins(job: str, words: list[str]) -> None:
    """Make the recipes and runs' folders that a command names and a clone does not have."""
    for word in words:
        path, of_job = Path(word), job
        if word.startswith("-") or "=" in word or ":" in word:
            continue
        if job in ("evaluate", "generate") and word is words[0]:  # a run's folder
            (path / "policy").mkdir(parents=True, exist_ok=True)
            path, of_job = path / "config.toml", "ppo"
        if path.suffix == ".toml" and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in REST[of_job].items()]
            path.write_text("".join(lines), encoding="utf-8")


def check_proxlm(words: list[str]) -> None:
    job, *rest = words
    if job in ("--help", "--version", "COMMAND"):
        return
    assert job in JOB_MODULES
    if "--help" in rest:
        return
    stand_ins(job, rest)
    load_config(job, arguments=rest)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets, word


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        for extras in re.findall(r"^(?:proxlm|\.)\[([\w,]+)\]$", word):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), word


def check_python(words: list[str]) -> None:
    """A script of this repository exists, and its options are options that it has."""
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest", "pip"), words
        if words[1] == "pytest":
            check_pytest(words[2:])
        return
    script = ROOT / words[0]
    assert script.is_file(), words[0]
    source = "".join(path.read_text(encoding="utf-8") for path in script.parent.glob("*.py"))
    for word in words:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, word


def check_bash(words: list[str]) -> None:
    """A script of this repository can be read by bash, and its options are options that it has."""
    script = ROOT / words[0]
    subprocess.run(["bash", "-n", str(script)], check=True)
    source = script.read_text(encoding="utf-8")
    for word in words:
        assert not word.startswith("--") or f"        {word})" in source, word


def check_torchrun(words: list[str]) -> None:
    """What torchrun runs: -m proxlm and a job."""
    job = words.index("-m") + 1
    assert words[job] == "proxlm", words
    check_proxlm(words[job + 1 :])


def check_pytest(words: list[str]) -> None:
    for word in words:
        assert not word.startswith("tests") or (ROOT / word.partition("::")[0]).exists(), word


@pytest.mark.parametrize("block", SHELL, ids=place)
def test_commands_exist(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for program, *words in commands(block):
        match Path(program).name:
            case "proxlm":
                check_proxlm(words)
            case "make":
                check_make(words)
            case "pip":
                check_pip(words)
            case "python" | "python3":
                check_python(words)
            case "pytest":
                check_pytest(words)
            case "bash":
                check_bash(words)
            case "torchrun" | "srun":
                check_torchrun(words)
            case "git" | "cd" | "source" | "lm_eval":
                pass
            case "pre-commit" | ".ci" | "run":
                assert program != ".ci/run" or (ROOT / program).is_file()
            case _:
                pytest.fail(f"{block.place}: {program}: unknown to this test")


def test_the_pages_have_what_this_looks_at() -> None:
    """So that a change of the pages' form does not leave these tests with nothing to look at."""
    assert len(SHELL) >= 12
    assert len(all_blocks("toml")) >= 20
    assert len(all_blocks("python")) >= 15
