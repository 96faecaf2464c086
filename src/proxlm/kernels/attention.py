"""Attention: causal, over whole rows, for a training pass; and over a key–value cache, for decoding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU the backward pass in bf16 multiplies blocks of 32 queries one by one, and each call of oneDNN costs more
# than the product. For rows up to this length it takes 2.5 to 5 times as long as in float32 (65 to 189 tokens).
FLOAT32_BACKWARD = 512


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
    if _slow_backward(v):
        q, k = q.to(v.dtype), k.to(v.dtype)  # as autocast would: a norm of heads leaves them in float32
        if shared_keys:
            k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        attended: Tensor = _Float32Backward.apply(q, k, v, scale)
    else:
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=shared_keys
        )
    return attended.transpose(1, 2).flatten(2)


def _slow_backward(v: Tensor) -> bool:
    """Whether a pass is worth `_Float32Backward`: v [B, G, T, D]."""
    return (
        torch.is_grad_enabled()
        and v.device.type == "cpu"
        and v.dtype == torch.bfloat16
        and v.shape[2] <= FLOAT32_BACKWARD
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")
    )


class _Float32Backward(torch.autograd.Function):
    """torch's causal attention in bf16 on a CPU [B, Q, T, D], with its backward pass in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        attended: Tensor
        attended, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, True, scale=scale
        )
        ctx.save_for_backward(q, k, v, attended, sums)
        ctx.scale = scale
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *numbers, sums = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(part.float() for part in (grad, *numbers)), sums, 0.0, True, scale=ctx.scale
        )
        return *(part.to(grad.dtype) for part in grads), None


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
