"""The task metrics of an evaluation: what is right, how a response is read, and which numbers are made of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from proxlm.config.problems import Problems
from proxlm.config.setting import setting
from proxlm.text import listed, shown, suggestion
from proxlm.user_code import parse_reference

LARGEST_PATTERN = 1000  # characters


@dataclass(frozen=True)
class Needs:
    """What a metric needs.

    Attributes:
        package: Of the extra "metrics", by the name that it is imported by; "": none.
        answers: Whether records have to say what is right.
    """

    package: str = ""
    answers: bool = True


TASK_METRICS: Mapping[str, Needs] = {
    "exact_match": Needs(),
}
"""The built-in metrics of responses, by name."""

# What can say of a response that it is right, besides a metric of single responses: its reward, of 1 or more.
REWARD = "reward"


@dataclass(frozen=True)
class MetricSettings:
    """Metrics of held-out responses, beside the reward."""

    use: list[str] = setting(
        factory=list,
        help="names of docs/evaluation.md, or path/to/file.py:function; empty: none",
        path="function",
    )
    answer_fields: list[str] = setting(
        factory=lambda: ["answer"],
        help="fields of the record with a right answer, a text or a list of texts: any one is right",
    )
    read: Literal["whole", "first_line", "last_line", "number", "label", "pattern"] = setting(
        "whole",
        "what of a response is its answer: all of it, a line, its last number (or that behind ####), the label"
        " that comes first in it, or what a pattern finds last",
    )
    pattern: str = setting("", "with read = pattern: a regular expression; its first group is the answer")
    ignore_case: bool = setting(False, "whether upper and lower case are the same in an answer")
    samples_per_prompt: int = setting(
        1, "responses sampled to each held-out prompt; intervals are over prompts", ge=1
    )
    resamples: int = setting(
        1000, "bootstrap samples of the prompts for the interval of a metric of all responses", ge=1
    )


def metric_problems(metrics: MetricSettings) -> Problems:
    """What cannot be in the section [metrics]."""
    found: Problems = []
    for name in metrics.use:
        if parse_reference(name) is None and name not in TASK_METRICS:
            listing = f"there are {', '.join(TASK_METRICS)}; one of your own is path/to/file.py:function"
            if name.endswith(".py"):
                listing = f"add the name of the function: {shown(name)}:FUNCTION"
            found.append(
                ("metrics.use", f"no metric {shown(name)}; {suggestion(name, TASK_METRICS, listing)}")
            )
    if twice := [name for name in dict.fromkeys(metrics.use) if metrics.use.count(name) > 1]:
        found.append(("metrics.use", f"{listed(twice)} more than once"))
    for name in built_in(metrics):
        package = TASK_METRICS[name].package
        if package and find_spec(package) is None:
            found.append(("metrics.use", f'{name} needs {package}: pip install "proxlm[metrics]"'))
    return found + _reading_problems(metrics)


def built_in(metrics: MetricSettings) -> list[str]:
    """The metrics in use that are no functions of the user's."""
    return [name for name in metrics.use if name in TASK_METRICS]


def _reading_problems(metrics: MetricSettings) -> Problems:
    found: Problems = []
    if not metrics.answer_fields and any(TASK_METRICS[name].answers for name in built_in(metrics)):
        found.append(("metrics.answer_fields", "empty: name the field of the record with the right answer"))
    if metrics.read == "pattern":
        if not metrics.pattern:
            found.append(("metrics.pattern", 'required with metrics.read = "pattern"'))
        elif problem := pattern_problem(metrics.pattern):
            found.append(("metrics.pattern", problem))
    return found


def pattern_problem(pattern: str) -> str:
    """Why a text is no regular expression to search responses with; "" if it is one."""
    if len(pattern) > LARGEST_PATTERN:
        return f"{len(pattern)} characters long; at most {LARGEST_PATTERN}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression: {shown(str(error))}"
    return ""
