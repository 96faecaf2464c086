"""From logits to a token and the log-prob it was sampled with."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.config import RolloutConfig


def filter_logits(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Set the logits of excluded tokens to −inf. logits [B, V], already divided by the temperature → [B, V].

    min-p keeps tokens with p ≥ min_p · max p (Nguyen et al. 2024); top-k the k likeliest; top-p the smallest set
    of likeliest tokens whose probability reaches top_p (Holtzman et al. 2019), counted after top-k and min-p.
    Ties are kept or dropped in the order of a stable sort. The likeliest token always stays.
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


def sample(logits: Tensor, uniform: Tensor, config: RolloutConfig) -> tuple[Tensor, Tensor]:
    """Pick one token per row by inverting the cumulative distribution at `uniform`.

    Args: logits [B, V]; uniform [B] float64 in [0, 1). Returns: tokens [B] int64 and their log-probs [B] float32
    under the distribution sampled from: temperature and filters applied. Temperature 0 takes the likeliest token
    and gives its log-prob at temperature 1.
    """
    logits = logits.float()
    if config.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        logits = filter_logits(logits / config.temperature, config.top_k, config.top_p, config.min_p)
        cumulative = torch.cumsum(torch.softmax(logits, -1).double(), -1)
        total = cumulative[:, -1:]
        # Rounding must not carry the threshold to the total, behind which there is no token.
        threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return tokens, chosen - torch.logsumexp(logits, -1)
