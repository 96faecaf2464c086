"""Entities that a response names, as BIO tags, JSON or lines, and their F1."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from proxlm.config.metrics import MetricSettings
from proxlm.evaluation.bootstrap import Bootstrap, Counts
from proxlm.evaluation.task_metrics.answers import Answer, as_compared
from proxlm.evaluation.task_metrics.measured import Measured, Metric, of_values

# Words between the tags ("John B-PER lives O") are passed over.
_TAG = re.compile(r"(?<![\w-])(?:O|[BIES]-\w+(?:[-.]\w+)*)(?![\w-])")
_BULLET = re.compile(r"^(?:[-*•]\s+|\d+[.)]\s+)")
_TEXT, _LABEL = ("text", "entity", "name", "span", "word"), ("label", "type", "entity_type", "entity_group")

Entities = Counter[tuple[str, str]]
"""How often a response names (label, text)."""
Tags = list[str]


def tags_of(text: str) -> Tags:
    """The tags in a text, in order."""
    return _TAG.findall(text)


def entities_in_lines(text: str) -> Entities:
    """The entities of lines "text: label"; other lines are passed over."""
    found = Entities()
    for line in text.splitlines():
        name, colon, label = _BULLET.sub("", line.strip()).rpartition(":")
        if colon and name.strip() and label.strip():
            found[label.strip(), name.strip()] += 1
    return found


def entities_in_json(text: str) -> Entities | None:
    """The entities of the first list or object in a text: [{text, label}], [[text, label]] or {label: [text]}.

    Returns:
        None if there is none, or it is of another form.
    """
    start = min((at for mark in "[{" if (at := text.find(mark)) >= 0), default=-1)
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
        pairs = _pairs(value)
    except (ValueError, RecursionError):
        return None
    return Counter((label.strip(), name.strip()) for label, name in pairs)


def _pairs(value: Any) -> list[tuple[str, str]]:
    """(label, text) of each entity. Raises ValueError for another form."""
    if isinstance(value, dict) and not any(key in value for key in _TEXT):
        return [
            (_text(label), _text(name))
            for label, names in value.items()
            for name in (names if isinstance(names, list) else [names])
        ]
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            label, name = (next((item[key] for key in keys if key in item), None) for keys in (_LABEL, _TEXT))
        elif isinstance(item, list) and len(item) == 2:
            name, label = item
        else:
            raise ValueError("no entity")
        found.append((_text(label), _text(name)))
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no text")
    return value


def entity_f1(metrics: MetricSettings) -> Metric:
    """Precision, recall and F1 of entities, over all and by type, as seqeval computes them.

    An entity is right if its type and all of its text, or of its tags, are. Of JSON and lines, entities are a bag:
    one that is named twice must be there twice.
    """
    as_tags = _bio_tags if metrics.entities == "bio" else _bag_tags(metrics)

    def measure(answers: Sequence[Answer], bootstrap: Bootstrap) -> Measured:
        pairs = [as_tags(answer.right[0], answer.answer) for answer in answers]
        right, given = [pair[0] for pair in pairs], [pair[1] or ["O"] * len(pair[0]) for pair in pairs]
        found = Measured(bootstrap.intervals(_by_seqeval(right, given), _resampled(right, given)))
        readable = of_values({"entities_read": [float(pair[1] is not None) for pair in pairs]}, bootstrap)
        return Measured({**found.estimates, **readable.estimates}, readable.values)

    return measure


def _bio_tags(right: str, given: str) -> tuple[Tags, Tags | None]:
    """Tags of one length: what is missing is O."""
    first, second = tags_of(right), tags_of(given)
    length = max(len(first), len(second))
    padded = [tags + ["O"] * (length - len(tags)) for tags in (first, second)]
    return padded[0], padded[1] if second or not first else None


def _bag_tags(metrics: MetricSettings) -> Callable[[str, str], tuple[Tags, Tags | None]]:
    """Bags of entities as tags: a place for each entity, with B-label where it is named."""
    read: Callable[[str], Entities | None] = (
        entities_in_json if metrics.entities == "json" else entities_in_lines
    )

    def entities(text: str) -> Entities | None:
        found = read(text)
        if found is None:
            return None
        return Counter(
            {(label, as_compared(name, metrics.ignore_case)): count for (label, name), count in found.items()}
        )

    def as_tags(right: str, given: str) -> tuple[Tags, Tags | None]:
        first, second = entities(right) or Entities(), entities(given)
        named = second if second is not None else Entities()
        places = [(key, i) for key in first | named for i in range(max(first[key], named[key]))]
        tags = [[f"B-{key[0]}" if i < bag[key] else "O" for key, i in places] for bag in (first, named)]
        return tags[0], tags[1] if second is not None else None

    return as_tags


_NUMBERS = ("precision", "recall", "f1")


def _by_seqeval(right: list[Tags], given: list[Tags]) -> dict[str, float]:
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    overall = precision_recall_fscore_support(right, given, average="micro", zero_division=0)
    values = {f"entity_{name}": float(value) for name, value in zip(_NUMBERS, overall[:3], strict=True)}
    types = sorted({type_ for tags in (right, given) for type_, _, _ in get_entities(tags)})
    of_each = precision_recall_fscore_support(right, given, average=None, zero_division=0)[2]
    return values | {f"entity_f1/{t}": float(v) for t, v in zip(types, of_each, strict=True)}


def _resampled(right: list[Tags], given: list[Tags]) -> Callable[[Counts], Mapping[str, float]]:
    """The same from how often each response counts."""
    from seqeval.metrics.sequence_labeling import get_entities

    spans = [[set(get_entities(tags)) for tags in every] for every in (right, given)]
    types = sorted({type_ for every in spans for found in every for type_, _, _ in found})
    # [n, types, 3]: hits, named and right entities
    table = np.array(
        [
            [
                [sum(type_ == of for type_, _, _ in some) for some in (first & second, second, first)]
                for of in types
            ]
            for first, second in zip(*spans, strict=True)
        ]
    ).reshape(len(right), -1)

    def statistic(counts: Counts) -> Mapping[str, float]:
        sums = (counts @ table).reshape(-1, 3)
        values = dict(zip((f"entity_{name}" for name in _NUMBERS), _scores(sums.sum(axis=0)), strict=True))
        return values | {f"entity_f1/{of}": _scores(row)[2] for of, row in zip(types, sums, strict=True)}

    return statistic


def _scores(sums: Any) -> tuple[float, float, float]:
    hits, named, right = map(float, sums)
    return (
        hits / named if named else 0.0,
        hits / right if right else 0.0,
        2 * hits / (named + right) if named + right else 0.0,
    )
