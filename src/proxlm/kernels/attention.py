"""Causal attention of whole rows, as a training pass needs it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxlm.kernels.widened import wide, widens

# On a CPU torch's fused attention takes nearly twice as long as the plain products for rows up to this long, and as
# long for rows of twice the length; it keeps no scores, which are little for such rows.
SHORT = 128


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v, each position over itself and those before it.

    q [B, T, Q, D]; k, v [B, T, G, D], one head of them for Q / G of q. Returns [B, T, Q · D].
    """
    plain = q.device.type == "cpu" and q.dtype == k.dtype == v.dtype and q.dtype != torch.bfloat16
    if torch.is_autocast_enabled("cpu"):
        plain = torch.get_autocast_dtype("cpu") == torch.bfloat16 and widens(q.device)
        if plain:
            q, k, v = (part.bfloat16() for part in (q, k, v))
    if plain and q.shape[1] <= SHORT:
        with torch.autocast("cpu", enabled=False):
            attended: Tensor = _PlainAttention.apply(q, k, v, scale)
        return attended
    gqa = q.shape[2] != k.shape[2]
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    return attended.transpose(1, 2).flatten(2)


class _PlainAttention(torch.autograd.Function):
    """The queries of a group of heads go as one longer row of queries, so that keys are not repeated for them.

    Of bf16 inputs scores, softmax and their derivatives are float32, as in fused attention.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        rows, length, heads, size = q.shape
        groups = k.shape[2]
        ctx.shape, ctx.scale = (rows, length, groups, heads // groups, size), scale
        queries = _by_group(q, ctx.shape)
        keys, values = (part.transpose(1, 2).reshape(-1, length, size) for part in (k, v))
        later = torch.full((length, length), -torch.inf, dtype=wide(q[:0]).dtype).triu(1)
        later = later.repeat(heads // groups, 1)
        scores = torch.baddbmm(later, wide(queries), wide(keys).transpose(1, 2), alpha=scale)
        shares = torch.softmax(scores, -1).to(q.dtype)
        ctx.save_for_backward(queries, keys, values, shares)
        return _by_token(torch.bmm(shares, values), ctx.shape).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, shares = ctx.saved_tensors
        rows, length, groups, each, size = ctx.shape
        given = _by_group(given.view(rows, length, groups * each, size), ctx.shape)
        of_values = torch.bmm(shares.transpose(1, 2), given)
        of_shares = torch.bmm(wide(given), wide(values).transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_shares, wide(shares), -1, of_shares.dtype)
        of_scores = of_scores.mul_(ctx.scale).to(shares.dtype)
        of_queries = _by_token(torch.bmm(of_scores, keys), ctx.shape)
        of_keys = torch.bmm(of_scores.transpose(1, 2), queries)
        of_keys, of_values = (
            part.view(rows, groups, length, size).transpose(1, 2) for part in (of_keys, of_values)
        )
        return of_queries, of_keys, of_values, None


def _by_group(x: Tensor, shape: tuple[int, int, int, int, int]) -> Tensor:
    """[B, T, Q, D] → [B · G, Q / G · T, D]."""
    rows, length, groups, each, size = shape
    return x.reshape(shape).permute(0, 2, 3, 1, 4).reshape(rows * groups, each * length, size)


def _by_token(x: Tensor, shape: tuple[int, int, int, int, int]) -> Tensor:
    """[B · G, Q / G · T, D] → [B, T, Q, D]."""
    rows, length, groups, each, size = shape
    return x.view(rows, groups, each, length, size).permute(0, 3, 1, 2, 4).flatten(2, 3)
