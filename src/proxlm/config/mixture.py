"""Mixtures of data sets: what the entries of text.train are called, and which settings of a mixture cannot be."""

from __future__ import annotations

from collections.abc import Sequence

from proxlm.config.problems import Problems
from proxlm.config.schema import TextSettings
from proxlm.text import listed, shown


def is_mixture(text: TextSettings) -> bool:
    """Whether the entries of text.train are drawn in proportions of their own."""
    return bool(text.weights) or text.temperature != 1


def source_names(paths: Sequence[str]) -> list[str]:
    """What each entry is called: its file, folder, data set or task without folders and endings."""
    return [path.rstrip("/").rpartition("/")[2].rpartition(":")[2].split(".")[0] or path for path in paths]


def kept_tokens_problems(text: TextSettings) -> Problems:
    """text.tokens in a job that learns records."""
    return [("text.tokens", "is of pretrain alone; leave it out")] if text.tokens else []


def mixture_problems(text: TextSettings) -> Problems:
    """Weights and temperature that cannot be."""
    if not is_mixture(text):
        return []
    key = "text.weights" if text.weights else "text.temperature"
    names = source_names(text.train)
    if len(names) < 2:
        return [(key, "a mixture needs two entries in text.train, or more")]
    if text.weights and text.temperature != 1:
        return [("text.temperature", "not with text.weights, which give the proportions; leave one out")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return [(key, f"two entries of text.train are called {shown(twice[0])}; rename a file or folder")]
    if text.weights and set(text.weights) != set(names):
        return [("text.weights", f"must give a weight to each of {listed([shown(name) for name in names])}")]
    return [
        (f"text.weights.{name}", "must be more than 0")
        for name, weight in text.weights.items()
        if weight <= 0
    ]


def shares_of(text: TextSettings, tokens: Sequence[int]) -> list[float]:
    """The share of the tokens that each entry of text.train has in training, from the tokens that it holds.

    w_i / Σ w with the weights, or n_i^(1/T) / Σ n^(1/T): T = 1 is what the data hold, a large T makes all alike.
    """
    if text.weights:
        sizes = [text.weights[name] for name in source_names(text.train)]
    else:
        sizes = [count ** (1 / text.temperature) for count in tokens]
    return [size / sum(sizes) for size in sizes]
