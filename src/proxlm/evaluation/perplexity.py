"""Perplexity and bits per byte of plain text.

A document is the tokens of its text behind one token of context: what the tokenizer puts first (BOS), or else BOS,
or else EOS, which stands between documents in pretraining. Every token of the text is predicted once; the end of the
document is not. So the sum of the log-probs is log p(text), and bits per byte are comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from proxlm.data.documents import Documents
from proxlm.data.tokenizer import decode, encode_document_parts
from proxlm.evaluation.intervals import Estimate, mean_with_interval, student_t_975
from proxlm.evaluation.results import Evaluation
from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import segment_sum
from proxlm.runlog import metric_names as names
from proxlm.text import shown
from proxlm.types import Progress, Sequences

_BYTES_AT_ONCE = 2**18
_PASSES_AT_ONCE = 16


class Window(NamedTuple):
    """A part of a document that is read at once: tokens `start` to `end`; those from `predicted` on are counted."""

    start: int
    predicted: int
    end: int


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """How a document of so many tokens, the first of which is context, is read.

    The first window predicts all its tokens but the first. Each later one begins `stride` tokens after the one before
    it, and predicts the tokens that are new in it, at most `stride`, each behind window − stride others or more.

    Args:
        tokens: Of the document, at least 2.
        window: The most tokens read at once, at least 2.
        stride: At least 1, less than window.
    """
    predicted = 1
    for start in range(0, tokens, stride):
        end = min(start + window, tokens)
        yield Window(start, predicted, end)
        if end == tokens:
            return
        predicted = end


@dataclass
class _Document:
    """What is found of one document."""

    beginning: str
    size: int
    tokens: int
    changed: bool
    nats: float = 0.0


def evaluate_texts(
    name: str,
    model: LanguageModel,
    documents: Documents,
    window: int,
    stride: int,
    micro_batch_tokens: int = 4096,
    samples: int = 16,
    on_progress: Progress | None = None,
) -> Evaluation:
    """How well a model predicts documents, with intervals over documents.

    Args:
        name: What the model is called in the table.
        model: A decoder-only model.
        documents: The texts.
        window: The most tokens read at once.
        stride: How far the window moves in a longer document; see `windows`.
        micro_batch_tokens: Most tokens in one pass.
        samples: How many documents to keep in `samples`.
        on_progress: Called with the number of documents read and of all.
    """
    found: list[_Document] = []
    waiting: list[tuple[_Document, Sequence[int], Window]] = []
    for i in range(len(documents)):
        tokens, document = _tokens_of(model.tokenizer, documents, i)
        found.append(document)
        for part in windows(len(tokens), window, stride):
            waiting.append((document, tokens, part))
            if len(waiting) * window > _PASSES_AT_ONCE * micro_batch_tokens:
                _read(model, waiting, micro_batch_tokens)
                waiting = []
        if on_progress is not None:
            on_progress(i + 1, len(documents))
    _read(model, waiting, micro_batch_tokens)
    return _summary(name, model, found, window, stride, samples)


def _tokens_of(tokenizer: Any, documents: Documents, i: int) -> tuple[list[int], _Document]:
    """The one token of context of a document with the tokens of its text, and what is known of it."""
    texts = list(documents.parts(i, _BYTES_AT_ONCE))
    first, *parts, _ = encode_document_parts(tokenizer, texts)
    if not first:
        start = tokenizer.bos_token_id
        first = [tokenizer.eos_token_id if start is None else start]
    body = [token for part in parts for token in part]
    changed = "".join(decode(tokenizer, parts[0]).split()) != "".join(texts[0].split())
    return [*first, *body], _Document(shown(texts[0], 60), documents.size(i), len(body), changed)


@torch.no_grad()
def _read(
    model: LanguageModel, waiting: Sequence[tuple[_Document, Sequence[int], Window]], micro_batch_tokens: int
) -> None:
    """Add the negative log-probs of some windows' predicted tokens to their documents."""
    if not waiting:
        return
    sequences = Sequences.from_lists(
        [tokens[part.start : part.predicted] for _, tokens, part in waiting],
        [tokens[part.predicted : part.end] for _, tokens, part in waiting],
    )
    for rows in micro_batches(sequences.lengths, micro_batch_tokens):
        part = sequences.select(rows)
        logprobs = token_outputs(model, part.to(model.device)).logprobs.cpu().double()
        for row, total in zip(
            rows.tolist(), segment_sum(logprobs, part.response_offsets).tolist(), strict=True
        ):
            waiting[row][0].nats -= total


def _summary(
    name: str, model: LanguageModel, found: Sequence[_Document], window: int, stride: int, samples: int
) -> Evaluation:
    sizes, tokens = [float(d.size) for d in found], [float(d.tokens) for d in found]
    bits = [d.nats / math.log(2) for d in found]
    per_token = _from_0(ratio([d.nats for d in found], tokens))
    each = [some / size for some, size in zip(bits, sizes, strict=True)]
    metrics: dict[str, Estimate] = {
        names.BITS_PER_BYTE: _from_0(ratio(bits, sizes)),
        names.DOCUMENT_BITS_PER_BYTE: _from_0(mean_with_interval(each)),
        names.TEXT_PERPLEXITY: Estimate(
            *(math.exp(min(x, 700.0)) for x in (per_token.mean, per_token.low, per_token.high))
        ),
        names.BYTES_PER_TOKEN: _from_0(ratio(sizes, tokens)),
    }
    if changed := sum(d.changed for d in found):
        metrics[names.CHANGED_DOCUMENTS] = Estimate.exactly(float(changed))
    rows = [
        {
            "prompt_id": i,
            "prompt": d.beginning,
            "bytes": d.size,
            "tokens": d.tokens,
            "changed": d.changed,
            "nats": d.nats,
            "metrics": {names.DOCUMENT_BITS_PER_BYTE: each[i]},
            "window": window,
            "stride": stride,
        }
        for i, d in enumerate(found)
    ]
    shown_rows = [
        {
            "prompt_id": i,
            "prompt": d.beginning,
            "response": f"{each[i]:.3f} bits per byte, {d.tokens} tokens of {d.size} bytes",
            "reward": None,
        }
        for i, d in enumerate(found[:samples])
    ]
    return Evaluation(name, model.source, metrics, shown_rows, len(rows), 0, rows)


def _from_0(found: Estimate) -> Estimate:
    """The interval of what cannot be negative, cut at 0: a surprise in nats or bits, a size."""
    return Estimate(found.mean, max(0.0, found.low), found.high)


def ratio(numbers: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """Σ numbers / Σ sizes with its 95% interval over the pairs, by linearisation (Cochran 1977, section 2.11).

    R ± t · s / (mean size · √n) with s² = Σ (number − R · size)² / (n − 1). One pair has no interval.
    """
    n, total = len(numbers), math.fsum(sizes)
    value = math.fsum(numbers) / total
    if n == 1:
        return Estimate.exactly(value)
    pairs = zip(numbers, sizes, strict=True)
    deviation = math.sqrt(math.fsum((x - value * size) ** 2 for x, size in pairs) / (n - 1))
    half = student_t_975(n - 1) * deviation * math.sqrt(n) / total
    return Estimate(value, value - half, value + half)
