"""Where a token is sampled: from logits to a token and the log-prob it was sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Of a large vocabulary the cumulative distribution is taken over blocks of so many tokens, and then within the one
# that is hit.
BLOCK = 256


class Distribution(NamedTuple):
    """What turns logits into the distribution that is sampled from; see `SamplingParams` for the fields."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def filtered(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


class Kept(NamedTuple):
    """What the filters left of B rows, filled by `sample`.

    sets [B, V] bool: which tokens a row could have sampled; mass [B] float32: their probability before the others
    were left out.
    """

    sets: Tensor
    mass: Tensor

    @staticmethod
    def empty(rows: int, vocabulary: int, device: torch.device) -> Kept:
        """To be filled."""
        return Kept(
            torch.empty(rows, vocabulary, dtype=torch.bool, device=device), torch.empty(rows, device=device)
        )


def sample_rows(
    logits: Tensor, uniform: Tensor, distributions: Sequence[Distribution], kept: Kept | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row, each row from its own distribution.

    Rows with the same distribution are sampled together; if all have the same one, that is a single call of `sample`.

    Args:
        logits: [B, V].
        uniform: [B] float64 in [0, 1).
        distributions: of each row.
        kept: Filled with what each row could have sampled; None: not wanted.

    Returns:
        Tokens [B] int64 and their log-probs [B] float32.
    """
    first = distributions[0]
    if all(distribution == first for distribution in distributions):
        return sample(logits, uniform, first, kept)
    groups: dict[Distribution, list[int]] = {}
    for row, distribution in enumerate(distributions):
        groups.setdefault(distribution, []).append(row)
    tokens = torch.empty(len(distributions), dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(len(distributions), dtype=torch.float32, device=logits.device)
    for distribution, members in groups.items():
        rows = torch.tensor(members, device=logits.device)
        part = None if kept is None else Kept.empty(len(members), logits.shape[-1], logits.device)
        tokens[rows], logprobs[rows] = sample(logits[rows], uniform[rows], distribution, part)
        if kept is not None and part is not None:
            kept.sets[rows], kept.mass[rows] = part
    return tokens, logprobs


def filter_logits(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Set the logits of excluded tokens to −inf.

    Ties are kept or dropped in the order of a stable sort. The likeliest token always stays.

    Args:
        logits: [B, V], already divided by the temperature.
        top_k: keep the k likeliest tokens; 0: all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this (Holtzman et al. 2019),
            counted after top-k and min-p.
        min_p: keep tokens with p ≥ min_p · max p (Nguyen et al. 2024).

    Returns:
        [B, V].
    """
    if min_p > 0:
        floor = logits.amax(-1, keepdim=True) + torch.log(torch.tensor(min_p, dtype=logits.dtype))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if 0 < top_k < logits.shape[-1] or top_p < 1:
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        if top_k > 0:
            ordered[:, top_k:] = -torch.inf
        if top_p < 1:
            probabilities = torch.softmax(ordered.double(), -1)
            before = torch.cumsum(probabilities, -1) - probabilities
            drop = before >= top_p
            drop[:, 0] = False
            ordered = ordered.masked_fill(drop, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return logits


def sample(
    logits: Tensor, uniform: Tensor, distribution: Distribution, kept: Kept | None = None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution at `uniform`.

    Args:
        logits: [B, V].
        uniform: [B] float64 in [0, 1).
        distribution: of all rows. Temperature 0 takes the likeliest token and gives its log-prob at temperature 1.
        kept: Filled with what the filters leave, everything at temperature 0; None: not wanted.

    Returns:
        Tokens [B] int64 and their log-probs [B] float32 under the distribution sampled from. A log-prob is not finite
        where a row's logits hold NaN or +inf, or nothing but −inf; its token then means nothing.
    """
    logits = logits.float()
    if distribution.temperature == 0:
        if kept is not None:
            kept.sets.fill_(True)
            kept.mass.fill_(1)
        tokens = logits.argmax(-1, keepdim=True)
        largest = logits.gather(-1, tokens)
        return tokens[:, 0], -(logits - largest).exp_().sum(-1).log()
    if distribution.temperature != 1:
        logits = logits / distribution.temperature
    whole = logits
    logits = filter_logits(logits, distribution.top_k, distribution.top_p, distribution.min_p)
    top = logits.amax(-1, keepdim=True)  # the likeliest token always stays
    # One exponential serves the choice and the log-prob.
    if logits.shape[-1] <= 16 * BLOCK:
        sums = (logits - top).exp_().cumsum(-1, dtype=torch.float64)
        tokens, _ = _first_above(sums, uniform[:, None] * sums[:, -1:])
    else:
        sums, tokens = _pick_by_blocks(logits, top, uniform[:, None])
    logprobs = logits.gather(-1, tokens) - top - sums[:, -1:].log().float()
    if kept is not None:
        torch.gt(logits, -torch.inf, out=kept.sets)
        shares = 1.0 if whole is logits else sums[:, -1] / (whole - top).exp_().sum(-1)
        kept.mass.copy_(torch.as_tensor(shares).clamp(max=1))
    return tokens[:, 0], logprobs[:, 0]


def _pick_by_blocks(logits: Tensor, top: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative sums of exp(logits − top) over blocks of tokens, [B, n] float64, and the sampled tokens [B, 1]."""
    size = logits.shape[-1]
    shares = torch.empty(len(logits), -(-size // BLOCK), BLOCK, device=logits.device)
    torch.sub(logits, top, out=shares.flatten(1)[:, :size]).exp_()
    shares.flatten(1)[:, size:] = 0
    sums = shares.sum(-1, dtype=torch.float64).cumsum_(-1)
    block, excess = _first_above(sums, uniform * sums[:, -1:])
    within = shares.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    tokens = block * BLOCK + _first_above(within, excess)[0]
    return sums, tokens.clamp_(max=size - 1)  # beyond only where a sum is NaN


def _first_above(sums: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The first of ascending sums [B, n] above the threshold [B, 1], and how far above the sum before that is.

    All in float64, both results [B, 1]. Sums that rise by nothing are never the first.
    """
    total = sums[:, -1:]
    # Rounding must not carry the threshold to the total, after which there is no token.
    below = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    # Only among sums that are NaN there is none that is above.
    place = torch.searchsorted(sums, below, right=True).clamp_(max=sums.shape[-1] - 1)
    before = torch.where(place > 0, sums.gather(-1, (place - 1).clamp(min=0)), 0.0)
    return place, below - before
