"""An exported model against its original: the same token ids, and how far their probabilities are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

# The most log-probs of the original that are kept at once.
_MOST_NUMBERS = 2**26
# What the texts are chosen for: scripts, numbers, code, white space, emoji of several code points.
TEXTS = (
    "Once upon a time there was a little girl who lived in a house by the sea.",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n",
    "In 1969, 3.5 billion people (about 97%) didn't see it: they'd have paid $1,000,000.00!",
    "Emoji: 😀👍🏽 👩‍👩‍👧‍👦 🇨🇳 and naïve café, Zürich, Ærøskøbing, ½ µm, ①②.",
    "  two spaces, a tab\tand\n\n\nthree line breaks, then more   \n  ",
    "ПРИВЕТ мир! مرحبا بالعالم; שלום, नमस्ते दुनिया, สวัสดี, こんにちは世界、안녕하세요.",
    "The cat sat on the mat. The dog ran to the park, and the bird flew over the moon.",
    "a", " ", "\n", "\t\tx", "I'M HERE, We'Ll see; it's THEY'VE 'tis", "12345678901234567890",
    "<b>bold</b> &amp; https://example.org/a?b=c#d e@f.org", "混合 mixed 文字123和numbers４５６。", "…—–“”‘’«»",
    "x" * 40, "\u0301\u0301 combining, zero\u200bwidth, \ufeffmark", "\\n \\t \"quoted\" `code` {json: [1, 2]}",
)  # fmt: skip


class Reader(Protocol):
    """A program that has read an exported model.

    Attributes:
        name: What it is called in the report.
    """

    name: str

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts first and last."""

    def outputs(self, ids: Sequence[int]) -> Tensor:
        """The log-probs of the next token behind each of the tokens, [T, V]; a classifier's scores, [1 or T, K]."""

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` most likely tokens one after another; fewer if it ends before."""


@dataclass(frozen=True)
class Expected:
    """What the original gives.

    Attributes:
        texts: Texts, and the token ids of each.
        rows: Token ids that are read, each with its outputs and its greedy response.
        ends: The tokens at which a response ends.
        scores: Whether the outputs are a classifier's scores, not log-probs.
    """

    texts: Sequence[tuple[str, list[int]]]
    rows: Sequence[tuple[list[int], Tensor, list[int]]]
    ends: Collection[int]
    scores: bool = False


@dataclass(frozen=True)
class Agreement:
    """How far an exported model agrees with its original.

    Attributes:
        reader: The program that read it.
        texts: Number of texts whose token ids were compared.
        same_ids: Number of those with the same ids.
        other_ids: The first text whose ids differ; "": none.
        outputs: Number of tokens behind which all log-probs were compared; of a classifier, of its outputs.
        difference: Largest difference of two log-probs, in nats, or of two scores.
        kl: Mean KL(original ‖ exported) behind a token, in nats; None: a classifier.
        kl_max: The largest.
        same_token: Share of the tokens behind which both find the same token most likely.
        greedy: Share of the tokens of greedy responses up to the first that differs.
        greedy_tokens: Number of tokens of the original's greedy responses.
    """

    reader: str
    texts: int
    same_ids: int
    other_ids: str
    outputs: int
    difference: float
    kl: float | None = None
    kl_max: float | None = None
    same_token: float | None = None
    greedy: float | None = None
    greedy_tokens: int = 0


def expected_of(
    original: Reader,
    texts: Sequence[str],
    ends: Collection[int],
    *,
    count: int,
    tokens: int,
    greedy: int,
    scores: bool = False,
) -> Expected:
    """What the original gives for the texts.

    Args:
        original: The model that was exported.
        texts: All are encoded.
        ends: The tokens at which a response ends.
        count: Of so many, the outputs are compared as well.
        tokens: The first tokens of each of these that are read.
        greedy: Length of the greedy response to each.
        scores: Whether the outputs are a classifier's scores.
    """
    encoded = [(text, original.encode(text)) for text in texts]
    rows: list[tuple[list[int], Tensor, list[int]]] = []
    kept = 0
    for _, ids in encoded:
        if not ids or len(rows) == count or kept > _MOST_NUMBERS:
            continue
        read = ids[:tokens]
        found = original.outputs(read)
        kept += found.numel()
        rows.append((read, found, original.greedy(read, greedy) if greedy else []))
    return Expected(encoded, rows, ends, scores)


def compare(
    expected: Expected, reader: Reader, on_progress: Callable[[int, int], None] | None = None
) -> Agreement:
    """Let a program read what the original read, and compare.

    Args:
        expected: What the original gave.
        reader: The program.
        on_progress: Called with the number of texts done and of all.
    """
    other = [text for text, ids in expected.texts if reader.encode(text) != ids]
    gap, agreed, divergences, same = 0.0, 0, [], []
    for number, (ids, wanted, response) in enumerate(expected.rows):
        found = reader.outputs(ids)
        gap = max(gap, float((wanted - found).abs().nan_to_num(nan=math.inf).max()))
        if not expected.scores:
            divergences.append(divergence(wanted, found))
            same.append(wanted.argmax(-1) == found.argmax(-1))
        if response:
            agreed += _agreed(response, reader.greedy(ids, len(response)), expected.ends)
        if on_progress is not None:
            on_progress(number + 1, len(expected.rows))
    agreement = Agreement(
        reader.name,
        len(expected.texts),
        len(expected.texts) - len(other),
        other[0] if other else "",
        sum(len(row[1]) for row in expected.rows),
        gap,
    )
    if expected.scores:
        return agreement
    kl, length = torch.cat(divergences), sum(len(row[2]) for row in expected.rows)
    return replace(
        agreement,
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        same_token=float(torch.cat(same).double().mean()),
        greedy=agreed / length if length else None,
        greedy_tokens=length,
    )


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted ‖ found) of each row of log-probs, in float64, where the sum of their probabilities is 1."""
    p, q = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp(min=0.0)


def _agreed(wanted: Sequence[int], found: Sequence[int], ends: Collection[int]) -> int:
    """How many tokens are the same up to the first that differs; a program may leave out the token that ends."""
    for place, token in enumerate(wanted):
        if place == len(found):
            return place + (token in ends)
        if token != found[place]:
            return place
    return len(wanted)
