"""Gradients of weights, added up where they are kept.

autograd makes each micro-batch's gradient anew and adds it to the one before. For a vocabulary's embeddings that is a
matrix of zeros but for a few rows, made, cleared and added, each time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Setting(threading.local):
    in_place = False


_setting = _Setting()


@contextmanager
def gradients_in_place() -> Iterator[None]:
    """What runs forward in here may add its weights' gradients to `weight.grad` itself on the way back.

    The sums are the same. It is for `backward()`: `torch.autograd.grad` would find nothing, and hooks on the weights
    would hear nothing.
    """
    before, _setting.in_place = _setting.in_place, True
    try:
        yield
    finally:
        _setting.in_place = before


def are_in_place() -> bool:
    """Whether `gradients_in_place` holds, in this thread."""
    return _setting.in_place


def of_weight(weight: Tensor, left: Tensor, right: Tensor, in_place: bool) -> Tensor | None:
    """leftᵀ right, the gradient [O, I] of a weight, for left [n, O] and right [n, I].

    None where it has been added to weight.grad, which with `in_place` happens if there is one.
    """
    kept = weight.grad if in_place else None
    if kept is None:
        return (left.T @ right).to(weight.dtype)
    if kept.dtype == left.dtype:
        kept.addmm_(left.T, right)
    else:
        kept.add_(left.T @ right)
    return None


def embedded(module: nn.Embedding, tokens: Tensor) -> Tensor:
    """The module's embeddings [..., H] of tokens [...]."""
    plain = type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq
    # A GPU would add up equal tokens' rows in whatever order they come, never twice the same.
    on_cpu = module.weight.device.type == "cpu"
    if not (
        _setting.in_place and plain and on_cpu and torch.is_grad_enabled() and module.weight.requires_grad
    ):
        return module(tokens)
    y: Tensor = _Embedded.apply(tokens, module.weight, module.padding_idx)
    return y


class _Embedded(torch.autograd.Function):
    """As F.embedding: the padding token's row has no gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding = weight, padding
        return weight[tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        weight, tokens, given = ctx.weight, tokens.flatten(), given.flatten(0, -2).to(ctx.weight.dtype)
        if ctx.padding is not None:
            given = given * (tokens != ctx.padding)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, tokens, given)
        return None, None, None
