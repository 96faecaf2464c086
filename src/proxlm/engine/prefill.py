"""Which tokens of new requests the model has to read, and in which passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from proxlm.engine.kv_cache import CachedPrefix
from proxlm.models.forward import micro_batches

# New prompts are read this many tokens at a time, padding included: enough to fill a processor.
PREFILL_TOKENS = 2048


class PrefillPass(NamedTuple):
    """One pass over the unknown tokens of some requests.

    Attributes:
        rows: which requests, [b] int64.
        tokens: their unknown tokens, padded on the right, [b, t] int64.
        starts: position of the first unknown token of each, [b] int64.
        counts: how many tokens of each are real, [b] int64.
    """

    rows: Tensor
    tokens: Tensor
    starts: Tensor
    counts: Tensor


def shared_sources(prompts: Sequence[Sequence[int]], prefixes: Sequence[CachedPrefix | None]) -> list[int]:
    """For each request, the request whose pass serves it: the first one with the same prompt.

    A request with a prefix of its own is served by itself.
    """
    first: dict[tuple[int, ...], int] = {}
    return [
        i if prefix is not None else first.setdefault(tuple(prompt), i)
        for i, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True))
    ]


def prefill_passes(
    prompts: Sequence[Sequence[int]],
    prefixes: Sequence[CachedPrefix | None],
    rows: list[int],
    device: torch.device | str,
) -> Iterator[PrefillPass]:
    """The passes that read what is not cached of some requests.

    Some at a time, those of similar length together: that bounds the memory, and little of it is padding.

    Args:
        prompts: token ids of all requests.
        prefixes: what is cached of each.
        rows: the requests to read.
        device: of the tensors.
    """
    starts = [0 if (prefix := prefixes[i]) is None else prefix.length for i in rows]
    parts = [list(prompts[i][start:]) for i, start in zip(rows, starts, strict=True)]
    counts = torch.tensor([len(part) for part in parts])
    for group in micro_batches(counts, PREFILL_TOKENS):
        chosen, widest = group.tolist(), int(counts[group].max())
        yield PrefillPass(
            rows=torch.tensor([rows[i] for i in chosen], device=device),
            tokens=torch.tensor([parts[i] + [0] * (widest - len(parts[i])) for i in chosen], device=device),
            starts=torch.tensor([starts[i] for i in chosen], device=device),
            counts=counts[group].to(device),
        )
