"""The help texts hold every setting, with what it is and what it may be."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest

from proxlm.config import JOBS, describe
from proxlm.config.help import overview
from proxlm.config.setting import Bounds
from proxlm.config.tree import kinds
from proxlm.config.values import toml_value
from proxlm.errors import ConfigError


def settings(section: Any, at: str = "") -> Iterator[tuple[str, Any, str, Bounds]]:
    """(dotted key, default, meaning, bounds) of all settings of a default section."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), at + field.name
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{key}.")
            continue
        yield key, value, field.metadata["help"], field.metadata["bounds"]
        kind = kinds(type(section))[field.name]
        if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]):
            yield from settings(get_args(kind)[1](), f"{key}.NAME.")


@pytest.mark.parametrize("job", JOBS)
def test_help_has_every_setting_with_default_and_meaning(job: str) -> None:
    lines = describe(job).splitlines()
    found = list(settings(JOBS[job]()))
    for key, default, meaning, bounds in found:
        places = [i for i, line in enumerate(lines) if line.startswith(f"  --{key} ")]
        assert len(places) == 1, key
        following = lines[places[0] + 1 :]
        text = " ".join(line.strip() for line in following[: 3 + len(meaning) // 50])
        assert meaning, f"{key} has no meaning"
        assert meaning in text
        assert f"(default {toml_value(default)}" in lines[places[0]]
        assert ("at least" in lines[places[0]]) == (bounds.ge is not None)
    short = ("  --resume", "  --on-bad-record")
    options = [line for line in lines if line.startswith("  --") and line not in short]
    assert len(options) == len(found)


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("ppo", "  --ppo.lam NUMBER  (default 0.95, at least 0, at most 1)"),
        ("ppo", "  --run.seed INTEGER  (default 0, at least 0, less than 4294967296)"),
        ("ppo", '  --model.critic shared|separate|adapter  (default "separate")'),
        ("ppo", "  --model.lora.targets TEXT, repeatable  (default [])"),
        ("ppo", "  --optim.critic.lr NUMBER  (default 1e-05, more than 0)"),
        ("ppo", "  --reward.weights {KEY = NUMBER, ...}  (default {})"),
        ("ppo", "  --reward.terms.NAME.args {KEY = VALUE, ...}  (default {})"),
        ("ppo", "  --run.resume true|false  (default false)"),
        ("pretrain", "  --optim.lr NUMBER  (default 0.002, more than 0)"),
        ("ppo", "  --resume"),
        ("ppo", "      short for --data.on_bad_record"),
        ("sft", "      short for --text.on_bad_record"),
        ("ppo", "Usage: proxlm ppo [RECIPE.toml] [--section.key VALUE ...]"),
        ("evaluate", "Usage: proxlm evaluate [RECIPE.toml | RUN_FOLDER] [--section.key VALUE ...]"),
        ("report", "Usage: proxlm report FOLDER [--section.key VALUE ...]"),
        ("report", "Write a run's report: one HTML file that needs no network."),
        ("ppo", "rollout: How responses are sampled."),
    ],
)
def test_lines(job: str, line: str) -> None:
    assert line in describe(job).splitlines()


def test_a_sections_note_from_its_job_is_shown() -> None:
    text = " ".join(describe("evaluate").split())
    note = "(policy: the reference, evaluated first; empty: the first of models)"
    assert f"precision and the device. {note} --model.policy TEXT" in text


def test_resume_is_not_offered_where_there_is_no_run() -> None:
    assert "--resume" not in describe("demo")


@pytest.mark.parametrize("job", JOBS)
def test_lines_fit_a_terminal(job: str) -> None:
    assert max(len(line) for line in describe(job).splitlines()) <= 110


def test_the_overview_names_every_job_once() -> None:
    lines = overview().splitlines()
    for name, kind in JOBS.items():
        assert lines.count(f"  {name:<10}{kind.__doc__}") == 1
    assert sum(line.startswith("  ") for line in lines) == len(JOBS)


def test_help_on_an_unknown_job() -> None:
    with pytest.raises(ConfigError, match=r'^"pp": unknown job; did you mean ppo\?$'):
        describe("pp")
