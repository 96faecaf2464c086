"""A response beside what is right: which part of it is the answer, and the right answers of its record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxlm.config.metrics import ENTITIES, MetricSettings
from proxlm.data.fields import field_at
from proxlm.errors import DataError
from proxlm.rewards.numeric import is_marked, last_number, marked_number, to_number
from proxlm.rewards.phrases import is_unspaced, phrase_pattern
from proxlm.text import listed, shown
from proxlm.types import Completion, Prompt

_LATIN = re.compile("[a-z0-9]", re.IGNORECASE)

Read = Callable[[str], str | None]
"""From a response to its answer; None: it has none."""


@dataclass(frozen=True)
class Answer:
    """A response as metrics see it.

    Attributes:
        completion: The response with its prompt and record.
        prompt: Which prompt it answers.
        text: What the policy wrote.
        read: The answer that was read from it; None: none was found, which is no right one.
        right: The right answers, each as good as the others; none where no metric needs them.
        reward: What it earned; None: nothing, or there is no reward.
        logprob: The log-probability of the whole response at temperature 1; None where no metric needs it.
    """

    completion: Completion
    prompt: int
    text: str
    read: str | None
    right: tuple[str, ...] = ()
    reward: float | None = None
    logprob: float | None = None

    @property
    def answer(self) -> str:
        """The answer, "" if there is none."""
        return self.read or ""


def right_answers(prompt: Prompt, metrics: MetricSettings) -> tuple[str, ...]:
    """The right answers of a prompt's record, as `metrics.read` compares them.

    Raises:
        DataError: There is none, or one is not what can be read.
    """
    found: list[str] = []
    for name in metrics.answer_fields:
        value = field_at(prompt.fields, name)
        if ENTITIES in metrics.use:
            value = _as_one_text(value, metrics.entities)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                kind = "is not there" if one is None else f"holds a {type(one).__name__}"
                has = listed(prompt.fields, "no fields", most=8)
                raise DataError(
                    f'metrics.answer_fields: "{shown(name, 40)}" {kind} in the record of prompt'
                    f" {shown(prompt.text, 40)!r}; it must hold a text, or a list of texts. The record has {has}"
                )
            if isinstance(one, float) and not math.isfinite(one):
                raise DataError(
                    f'metrics.answer_fields: "{shown(name, 40)}" is {one} in the record of prompt'
                    f" {shown(prompt.text, 40)!r}, which is no answer; leave the record out, or write it as text"
                )
            found.append(_right(str(one), name, metrics))
    if not found:
        raise DataError(
            f"metrics.answer_fields: an empty list in the record of prompt {shown(prompt.text, 40)!r}; it needs a"
            " right answer"
        )
    return tuple(dict.fromkeys(found))


def check_language(metrics: MetricSettings, right: Sequence[tuple[str, ...]]) -> None:
    """Raise DataError for right answers in which a metric finds no words, unless `metrics.language = "zh"`."""
    every = [text for answers in right for text in answers]
    if metrics.language == "zh" or not every:
        return
    wordless = [text for text in every if not _LATIN.search(text)]
    unspaced = [text for text in wordless if is_unspaced(text)]
    for name in metrics.use:
        if name.startswith("rouge"):  # its words are of a-z and 0-9
            found = wordless if len(wordless) == len(every) else unspaced
        elif name in ("bleu", "squad_f1"):
            found = unspaced if len(unspaced) == len(every) else []
        else:
            continue
        if found:
            raise DataError(
                f'metrics.language = "en": {name} finds no words in the right answer {shown(found[0], 40)!r}; set it'
                " to zh, which counts single characters there, and the words of any other script"
            )


def _as_one_text(value: Any, form: str) -> Any:
    """Entities of a record as the text that a response would be: a list of tags, or what JSON would be read as."""
    if form == "bio" and isinstance(value, list | tuple) and all(isinstance(tag, str) for tag in value):
        return " ".join(value)
    return (
        json.dumps(value, ensure_ascii=False) if form == "json" and isinstance(value, list | dict) else value
    )


def _right(text: str, name: str, metrics: MetricSettings) -> str:
    if metrics.read != "number":
        return text
    if (number := to_number(text)) is None:
        raise DataError(
            f'metrics.read = "number": the field "{shown(name, 40)}" holds no number: {shown(text, 40)!r}'
        )
    return str(number)


def as_compared(text: str, ignore_case: bool) -> str:
    """An answer without white space around it, and without its case if that does not matter."""
    return text.strip().casefold() if ignore_case else text.strip()


def reading(metrics: MetricSettings, labels: Sequence[str] = ()) -> Read:
    """How an answer is read from a response.

    Args:
        metrics: The section [metrics].
        labels: What `read = "label"` looks for.
    """
    if metrics.read == "first_line":
        return lambda text: _lines(text)[0] if _lines(text) else None
    if metrics.read == "last_line":
        return lambda text: _lines(text)[-1] if _lines(text) else None
    if metrics.read == "number":
        return _number
    if metrics.read == "label":
        return _label_reader(labels, metrics.ignore_case)
    if metrics.read == "pattern":
        return _pattern_reader(re.compile(metrics.pattern))
    return str.strip


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _number(text: str) -> str | None:
    found = marked_number(text) if is_marked(text) else last_number(text)
    return None if found is None else str(found)


def _label_reader(labels: Sequence[str], ignore_case: bool) -> Read:
    """The label that begins first in a response, the longest of those that begin there; as `labels` spells it."""
    find = [(re.compile(phrase_pattern(as_compared(label, ignore_case))), label) for label in labels]

    def read(text: str) -> str | None:
        text = text.casefold() if ignore_case else text
        found = [(match.start(), -len(label), label) for one, label in find if (match := one.search(text))]
        return min(found)[-1] if found else None

    return read


def _pattern_reader(pattern: re.Pattern[str]) -> Read:
    def read(text: str) -> str | None:
        found = None
        for found in pattern.finditer(text):  # noqa: B007 (the last one)
            pass
        if found is None:
            return None
        part = found[1] if pattern.groups else found[0]
        return None if part is None else part.strip()

    return read
