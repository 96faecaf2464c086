"""What `proxlm compare` is given: runs, files of responses, or several of them, the seeds of an arm."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from proxlm.config.paths import home_expanded, short
from proxlm.config.values import shown_value
from proxlm.errors import RunError
from proxlm.evaluation.differences import Arm, Row, unusable
from proxlm.report.evaluation_files import read_responses, read_unchanged
from proxlm.report.run_data import MOST_MODELS
from proxlm.runlog.folder import read_jsonl
from proxlm.text import listed, shown

# The evaluation that stands for a run, where there is one of that name.
_OF_A_RUN = ("after", "model")


def read_arms(names: list[str]) -> list[Arm]:
    """The systems to compare, the first of them the reference.

    Args:
        names: Each a run's folder (its evaluation after training), a JSONL file of responses (of several models, one
            after another), or several of these with commas between them, the seeds of an arm. A single folder stands
            for all its evaluations: before and after.

    Raises:
        RunError: A file is missing or malformed, it is not what the run wrote, or there is nothing to compare.
    """
    if len(names) == 1 and os.path.isdir(home_expanded(names[0])):
        arms = _evaluations(Path(home_expanded(names[0])))
    else:
        arms = _named_below_their_folder(_told_apart(names, [_arms(name) for name in names]))
    if len(arms) < 2:
        found = arms[0].name if arms else "nothing"
        raise RunError(f"{listed(names)}: only {shown(found)} there; proxlm compare needs two to compare")
    return arms


def _arms(name: str) -> list[Arm]:
    parts = [name] if os.path.exists(home_expanded(name)) else [part for part in name.split(",") if part]
    if len(parts) < 2:
        return read_systems(name)
    seeds = [read_systems(part.strip()) for part in parts]
    for part, systems in zip(parts, seeds, strict=True):
        if len(systems) > 1:
            raise RunError(f"{shown(part)}: holds the responses of {len(systems)} models; a seed is of one")
    beginning = os.path.commonprefix([systems[0].name for systems in seeds])  # noqa: RUF071 - by characters
    return [Arm(f"{beginning}… ({len(seeds)} seeds)", [systems[0].runs[0] for systems in seeds])]


def _told_apart(names: list[str], found: list[list[Arm]]) -> list[Arm]:
    """All arms; those of a name that stands in several files, of one model asked in two ways for instance, are named
    by their file.
    """
    every = [arm.name for arms in found for arm in arms]
    return [
        arm if every.count(arm.name) == 1 else replace(arm, name=_by_file(name, arm, alone=len(arms) == 1))
        for name, arms in zip(names, found, strict=True)
        for arm in arms
    ]


def _by_file(name: str, arm: Arm, alone: bool) -> str:
    if len(arm.runs) > 1:
        files = [part.strip() for part in name.split(",") if part]
        return f"{os.path.commonprefix(files)}… ({len(arm.runs)} seeds)"  # noqa: RUF071 - by characters
    return short(name) if alone else f"{short(name)}: {arm.name}"


def _named_below_their_folder(arms: list[Arm]) -> list[Arm]:
    """Without the folders that all names begin with."""
    common = os.path.commonprefix([arm.name for arm in arms]).rpartition("/")  # noqa: RUF071
    return [replace(arm, name=arm.name.removeprefix(common[0] + common[1])) for arm in arms]


def read_systems(name: str) -> list[Arm]:
    """The systems in a run's folder, one, or in a file of responses, one for each model that it names.

    Raises:
        RunError: See `read_arms`.
    """
    path = Path(home_expanded(name))
    if os.path.isdir(path):
        every = {arm.name: arm for arm in _evaluations(path)}
        chosen = next((every[one] for one in _OF_A_RUN if one in every), None)
        if chosen is None:
            raise RunError(f"{path}: has no evaluation after training; is the run finished?")
        return [Arm(short(str(path)), chosen.runs)]
    if not path.exists():
        raise RunError(f"{shown(name)}: no such run or file of responses")
    by_model: dict[str, list[Row]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if found := unusable(row):
            metric, value = found
            raise RunError(
                f"{shown(name)}: row {number}: {shown(metric, 40)} = {shown_value(value)}: not a finite number; write"
                " one, or null where there is none"
            )
        by_model.setdefault(str(row.get("model", "")), []).append(row)
    if not by_model:
        raise RunError(f"{shown(name)}: the file holds no responses")
    if len(by_model) > MOST_MODELS:
        raise RunError(f"{path}: responses of {len(by_model)} models; a table has room for {MOST_MODELS}")
    return [Arm(model or short(str(path)), [rows]) for model, rows in by_model.items()]


def _evaluations(folder: Path) -> list[Arm]:
    """A run's evaluations that have responses."""
    content = read_unchanged(folder)
    if content is None:
        raise RunError(
            f"{folder}: holds no evaluation.json: no run, or one that is not finished or held nothing out"
        )
    found = [Arm(model["name"], [read_responses(folder, model["name"])]) for model in content["models"]]
    return [arm for arm in found if arm.runs[0]]
