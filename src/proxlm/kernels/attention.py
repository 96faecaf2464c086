"""Attention: causal, over whole rows, for a training pass; and over a key–value cache, for decoding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v, each position attending to itself and those before it.

    Args:
        q: Queries [B, T, Q, D].
        k: Keys [B, T, G, D]; G divides Q, and Q / G neighbouring query heads share a key head.
        v: Values [B, T, G, D].
        scale: Factor of the scores.

    Returns:
        [B, T, Q · D]
    """
    shared_keys = q.shape[2] != k.shape[2]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared_keys)
    return attended.transpose(1, 2).flatten(2)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale · q keysᵀ + mask) values, for the newest tokens of rows over what a cache holds; no gradient.

    Args:
        q: Queries [b, t, Q, D].
        keys: [b, G, T, D]; Q / G neighbouring query heads share a key head.
        values: [b, G, T, D].
        mask: Added to the scores, [b, 1, t, T]: 0, or −inf where a query must not look.
        scale: Factor of the scores.

    Returns:
        [b, t, Q · D]
    """
    rows, width, heads, size = q.shape
    groups = keys.shape[1]
    each = heads // groups
    # The query heads that share a key head are one longer row of queries, so that keys are not repeated for them.
    q = q.view(rows, width, groups, each, size).permute(0, 2, 3, 1, 4).reshape(rows, groups, -1, size)
    q = q.to(keys.dtype)
    if each > 1 and width > 1:
        mask = mask.repeat(1, 1, each, 1)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    attended = attended.view(rows, groups, each, width, size).permute(0, 3, 1, 2, 4)
    return attended.reshape(rows, width, heads * size)
