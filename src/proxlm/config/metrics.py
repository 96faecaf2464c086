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

_LONGEST_PATTERN = 1000  # characters


@dataclass(frozen=True)
class TaskMetric:
    """A built-in metric of responses.

    Attributes:
        meaning: What it says.
        package: What it needs of the extra "metrics", by the name that it is imported by; "": nothing.
        answers: Whether records have to say what is right.
    """

    meaning: str
    package: str = ""
    answers: bool = True


TASK_METRICS: Mapping[str, TaskMetric] = {
    "exact_match": TaskMetric("share of answers that are a right one"),
    "squad_exact": TaskMetric("the same without case, punctuation, a, an and the (SQuAD)"),
    "squad_f1": TaskMetric("F1 of the words of an answer and of the nearest right one (SQuAD)"),
    "accuracy": TaskMetric("share of responses that name the right class"),
    "precision": TaskMetric("mean over classes of the share of right ones among those named", "sklearn"),
    "recall": TaskMetric("mean over classes of the share of those right that are named", "sklearn"),
    "macro_f1": TaskMetric("mean over classes of F1", "sklearn"),
    "confusion": TaskMetric("which class was named for which", "sklearn"),
    "entity_f1": TaskMetric("F1 of entities, and by type", "seqeval"),
    "bleu": TaskMetric("BLEU of all responses together, 0 to 100", "sacrebleu"),
    "chrf": TaskMetric("chrF of all responses together, 0 to 100", "sacrebleu"),
    "chrf++": TaskMetric("chrF++ of all responses together, 0 to 100", "sacrebleu"),
    "rouge1": TaskMetric("ROUGE-1 F1 against the nearest right answer", "rouge_score"),
    "rouge2": TaskMetric("ROUGE-2 F1 against the nearest right answer", "rouge_score"),
    "rougeL": TaskMetric("ROUGE-L F1 against the nearest right answer", "rouge_score"),
    "self_bleu": TaskMetric(
        "mean BLEU of a response against all others, 0 to 100: high is alike", "sacrebleu", answers=False
    ),
    "pass_at_k": TaskMetric("probability that one of k responses to a prompt is right", answers=False),
    "calibration_error": TaskMetric(
        "expected calibration error of the confidence, in ten bins", answers=False
    ),
}
"""By name."""

CLASSIFICATION = ("accuracy", "precision", "recall", "macro_f1", "confusion")
ENTITIES = "entity_f1"
# What is made of whether each response is right, and the metrics and the reward that can say so.
OF_RIGHT = ("pass_at_k", "calibration_error")
SAYS_RIGHT = ("exact_match", "squad_exact", "accuracy")
REWARD = "reward"

# The first group is a number, from 0 to 1 or in percent.
CONFIDENCE = r"(?i)confidence\W{0,9}(?:is\W{1,3})?(\d+(?:\.\d+)?\s*%?)"


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
    language: Literal["en", "zh"] = setting(
        "en",
        "zh: Chinese: BLEU by sacreBLEU's tokeniser zh, ROUGE and SQuAD's F1 by single characters and Latin words",
    )
    labels: list[str] = setting(
        factory=list, help="the classes; empty: the right answers of the held-out records"
    )
    entities: Literal["bio", "json", "lines"] = setting(
        "bio",
        "how a response names entities: tags (B-PER I-PER O), JSON ([{text, label}] or {label: [text]}), or lines"
        " (text: label)",
    )
    right: str = setting(
        "exact_match",
        "what says that a response is right, for pass_at_k and calibration_error: exact_match, squad_exact, accuracy"
        " or a function of yours, which must be in use, or reward (1 or more)",
    )
    k: list[int] = setting(factory=lambda: [1], help="each k of pass_at_k", ge=1)
    confidence: Literal["stated", "probability"] = setting(
        "stated",
        "for calibration_error: the confidence that a response states, or the probability of the whole response",
    )
    confidence_pattern: str = setting(
        CONFIDENCE, "a regular expression whose first group is the stated confidence, 0.7 or 70%"
    )
    samples_per_prompt: int = setting(
        1, "responses sampled to each held-out prompt; intervals are over prompts", ge=1
    )
    baseline: str = setting(
        "",
        "file of records as the held-out ones, for classes: what logistic regression on TF-IDF learns from it stands"
        " beside the models; empty: no such judge",
        path="input",
    )
    resamples: int = setting(
        1000, "bootstrap samples of the prompts for the interval of a metric of all responses", ge=1
    )


def metric_problems(metrics: MetricSettings) -> Problems:
    """What cannot be in the section [metrics]."""
    found: Problems = []
    for name in metrics.use:
        if parse_reference(name) is None and name not in TASK_METRICS:
            listing = f"there are {listed(TASK_METRICS)}; one of your own is FILE.py:FUNCTION"
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
    if metrics.baseline and find_spec("sklearn") is None:
        found.append(("metrics.baseline", 'needs scikit-learn: pip install "proxlm[metrics]"'))
    return found + _reading_problems(metrics) + _right_problems(metrics)


def baseline_problems(metrics: MetricSettings, choices: bool, conversations: bool) -> Problems:
    """Why the judge of words cannot stand beside the models; choices: of multiple choice."""
    if not metrics.baseline:
        return []
    if conversations:
        return [("metrics.baseline", "of prompts in a file, not of an environment's; leave it out")]
    if not choices and not set(CLASSIFICATION) & set(metrics.use):
        reason = f"stands beside metrics of classes; add one to metrics.use: {', '.join(CLASSIFICATION)}"
        return [("metrics.baseline", reason)]
    return []


def built_in(metrics: MetricSettings) -> list[str]:
    """The metrics in use that are no functions of the user's."""
    return [name for name in metrics.use if name in TASK_METRICS]


def functions(metrics: MetricSettings) -> list[str]:
    """The names of the user's functions in use."""
    return [found.name for name in metrics.use if (found := parse_reference(name)) is not None]


def needs_reward(metrics: MetricSettings) -> bool:
    """Whether a metric is made of the reward."""
    return metrics.right == REWARD and any(name in metrics.use for name in OF_RIGHT)


def _reading_problems(metrics: MetricSettings) -> Problems:
    found: Problems = []
    if not metrics.answer_fields and any(TASK_METRICS[name].answers for name in built_in(metrics)):
        found.append(("metrics.answer_fields", "empty: name the field of the record with the right answer"))
    if metrics.read == "pattern" and not metrics.pattern:
        found.append(("metrics.pattern", 'required with metrics.read = "pattern"'))
    elif metrics.read == "pattern" and (problem := _pattern_problem(metrics.pattern)):
        found.append(("metrics.pattern", problem))
    compared = [
        label.strip().casefold() if metrics.ignore_case else label.strip() for label in metrics.labels
    ]
    if "" in compared or len(set(compared)) < len(compared):
        found.append(("metrics.labels", "one is empty, or two are the same; name each class once"))
    if metrics.labels and metrics.read != "label" and not set(CLASSIFICATION) & set(metrics.use):
        found.append(
            ("metrics.labels", "are for metrics of classes, or for metrics.read = label; leave them out")
        )
    return found


def _right_problems(metrics: MetricSettings) -> Problems:
    """What metrics of right responses need."""
    used = [name for name in OF_RIGHT if name in metrics.use]
    if not used:
        return []
    found: Problems = []
    known = [REWARD, *(name for name in metrics.use if name in SAYS_RIGHT), *functions(metrics)]
    if metrics.right not in known:
        reason = f"{used[0]} needs what says that a response is right; in use are {', '.join(known)}"
        if metrics.right in SAYS_RIGHT:
            reason += f"; add {metrics.right} to metrics.use"
        found.append(("metrics.right", reason))
    if "pass_at_k" in used and (not metrics.k or max(metrics.k) > metrics.samples_per_prompt):
        need = f"must be {max(metrics.k)} or more, the largest metrics.k" if metrics.k else ""
        found.append(("metrics.samples_per_prompt", need) if need else ("metrics.k", "empty: name a k"))
    if "calibration_error" in used and metrics.confidence == "stated":
        problem = _pattern_problem(metrics.confidence_pattern)
        if not problem and not re.compile(metrics.confidence_pattern).groups:
            problem = "needs a group, in parentheses, which is the confidence"
        if problem:
            found.append(("metrics.confidence_pattern", problem))
    return found


def _pattern_problem(pattern: str) -> str:
    """Why a text is no regular expression to search responses with; "" if it is one."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"{len(pattern)} characters long; at most {_LONGEST_PATTERN}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression: {shown(str(error))}"
    return ""
