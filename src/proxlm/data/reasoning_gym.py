"""Tasks of the package reasoning-gym: a generator of questions, with a verifier for each, as records.

A source is named reasoning-gym:TASK, or reasoning-gym:TASK?size=2000&seed=1&min_terms=2 with arguments of the task's
own. The same name gives the same records.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from proxlm.config.paths import GYM_PREFIX
from proxlm.data.skipped import Record
from proxlm.errors import DataError
from proxlm.text import reason_of, suggestion

LARGEST_SIZE = 1_000_000


def is_gym_name(name: object) -> bool:
    """Whether a source is named reasoning-gym:TASK."""
    return str(name).startswith(GYM_PREFIX)


def read_tasks(name: str) -> Iterator[Record]:
    """The questions of a task: prompt, task, index, and response, the answer, where there is one that is a text.

    `task` and `index` are what the reward `reasoning_gym` finds the verifier by.

    Args:
        name: reasoning-gym:TASK, with arguments or without.

    Raises:
        DataError: The package is not installed, or there is no such task or argument.
    """
    tasks = tasks_of(name)
    for index in range(len(tasks)):
        try:
            entry = tasks[index]
        except Exception as error:  # code of many authors
            raise DataError(f"{name}: question {index} cannot be made: {reason_of(error)}") from error
        fields = {"prompt": str(entry["question"]), "task": name, "index": index}
        if isinstance(entry["answer"], str):
            fields["response"] = entry["answer"]
        yield Record(fields, index + 1, name)


@functools.lru_cache(maxsize=16)
def tasks_of(name: str) -> Any:
    """The data set of reasoning-gym that `name` stands for: indexed, with `score_answer`.

    Raises:
        DataError: As `read_tasks`.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise DataError(f'{name}: needs the package reasoning-gym: pip install "proxlm[tasks]"') from error
    task, _, query = name.removeprefix(GYM_PREFIX).partition("?")
    if task not in DATASETS:
        raise DataError(f"{name}: no such task; {suggestion(task, DATASETS, f'there are {len(DATASETS)}')}")
    try:
        arguments = {"seed": 0} | {
            key: _value(text) for key, text in parse_qsl(query, strict_parsing=bool(query))
        }
    except ValueError as error:
        raise DataError(f"{name}: after the ? stand arguments, as in ?size=500&seed=1") from error
    size = arguments.get("size", 1)
    if not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE:
        raise DataError(f"{name}: size = {size!r}: must be a whole number from 1 to {LARGEST_SIZE:,}")
    try:
        return create_dataset(task, **arguments)
    except Exception as error:  # an argument that the task does not have or accept
        raise DataError(f"{name}: {reason_of(error)}") from error


def _value(text: str) -> Any:
    """A number, true, false, a list in JSON; anything else is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
