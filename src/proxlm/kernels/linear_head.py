"""Log-probabilities behind an output head that is one matrix, in place: the logits of a span stand in one buffer.

The same formulas as `logprobs.py`, which takes any head. Here nothing else of the logits' size is made but, for the
entropy, a second buffer; the head's gradient is added up where it is kept.

With bfloat16 = True what goes into a product is rounded to bf16 first, as with autocast, but what comes out is not:
logits, softmax and the head's gradient stay in the dtype of hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxlm.rl.logprobs import spans

ROUNDED_ROWS = 1024


class _Buffers:
    """Room for the logits of a span, over and over."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: int, entropy: bool, bfloat16: bool) -> None:
        self.bfloat16 = bfloat16
        self.probabilities = hidden.new_empty(rows, len(weight))
        self.log_probabilities = hidden.new_empty(rows, len(weight)) if entropy else None

    def fill(
        self, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor | None]:
        """log π(token) and entropy [r] for hidden [r, H]; leaves π, and log π where it has room for it, [r, V].

        With m the largest logit and p its probability: log Σ exp z = m − log p, which rounds no worse than the sum.
        """
        z = torch.mm(hidden, weight.T, out=self.probabilities[: len(hidden)])
        if temperature != 1.0:
            z.div_(temperature)
        largest = z.amax(-1, keepdim=True)
        chosen = z.gather(-1, tokens[:, None])
        log = self.log_probabilities
        if log is not None:
            log = log[: len(hidden)].copy_(z)
        p = torch.softmax(z, -1, out=z)
        log_normaliser = largest - p.amax(-1, keepdim=True).log()
        logprobs = (chosen - log_normaliser)[:, 0]
        if log is None:
            return logprobs, None
        log.sub_(log_normaliser)
        return logprobs, -torch.bmm(p[:, None], log[:, :, None])[:, 0, 0]

    def backward(
        self,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        given: Sequence[Tensor],
        entropies: Tensor | None,
        of_weight: Tensor | None,
    ) -> Tensor:
        """After `fill` with the same: gradients of the log-probs and the entropies → of hidden [r, H].

        ∂ / ∂ z_v = g ([v = a] − π_v) − g_H π_v (log π_v + H), in place of π. The weight's is added to of_weight.
        """
        of_z, of_logprobs = self.probabilities[: len(tokens)], given[0][:, None]
        if entropies is None:
            of_z.mul_(-of_logprobs)
        else:
            assert self.log_probabilities is not None
            factor = self.log_probabilities[: len(tokens)].add_(entropies[:, None]).mul_(given[1][:, None])
            of_z.mul_(factor.add_(of_logprobs).neg_())
        of_z.scatter_add_(-1, tokens[:, None], of_logprobs)
        if temperature != 1.0:
            of_z.div_(temperature)
        if self.bfloat16:
            _round(of_z, of_z)
        if of_weight is not None:
            of_weight.addmm_(of_z.T, hidden)
        return of_z @ weight


def _ready(x: Tensor, bfloat16: bool) -> Tensor:
    """What goes into the product in the place of x."""
    return _round(x, torch.empty_like(x)) if bfloat16 else x


def _round(x: Tensor, out: Tensor) -> Tensor:
    """x [n, m] rounded to bf16, in the dtype of out, which may be x. A few rows at a time: a head is large."""
    for part, place in zip(x.split(ROUNDED_ROWS), out.split(ROUNDED_ROWS), strict=True):
        place.copy_(part.bfloat16())
    return out


def linear_head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log π(token) [R] and, if asked, H(π) [R] of π = softmax(hidden weightᵀ / temperature).

    hidden [R, H] and weight [V, H] float32 or float64, tokens [R] int64; logits of `chunk` tokens at once, in the
    backward pass anew. bfloat16: see the module. Not for differentiating twice.
    """
    logprobs, entropies = _LinearHead.apply(hidden, weight, tokens, temperature, entropy, chunk, bfloat16)
    return logprobs, entropies if entropy else None


class _LinearHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        entropy: bool,
        chunk: int,
        bfloat16: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.rest = temperature, entropy, chunk, bfloat16
        hidden, weight = _ready(hidden, bfloat16), _ready(weight, bfloat16)
        buffers = _Buffers(hidden, weight, min(chunk, len(tokens)), entropy, bfloat16)
        logprobs = hidden.new_empty(len(tokens))
        entropies = torch.empty_like(logprobs) if entropy else None
        for span in spans(len(tokens), chunk):
            logprobs[span], found = buffers.fill(hidden[span], weight, tokens[span], temperature)
            if entropies is not None and found is not None:
                entropies[span] = found
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens = ctx.saved_tensors
        temperature, entropy, chunk, bfloat16 = ctx.rest
        hidden, weight = _ready(hidden, bfloat16), _ready(weight, bfloat16)
        gradient, of_weight = torch.empty_like(hidden), None
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
        buffers = _Buffers(hidden, weight, min(chunk, len(tokens)), entropy, bfloat16)
        for span in spans(len(tokens), chunk):
            part = hidden[span], weight, tokens[span], temperature
            found = buffers.fill(*part)
            grads = [g[span] for g in given[: 1 + entropy]]
            gradient[span] = buffers.backward(*part, grads, found[-1], of_weight)
        return gradient, of_weight, None, None, None, None, None


def backward_through_linear_head(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    loss: Callable[[slice, Tensor, Tensor | None], Tensor],
    bfloat16: bool = False,
) -> Tensor:
    """As `backward_through_head`, for a head that is weight [V, H]. Its gradient is added to weight.grad."""
    gradient, whole = torch.empty_like(hidden), _ready(hidden.detach(), bfloat16)
    factor = _ready(weight.detach(), bfloat16)
    buffers = _Buffers(whole, factor, min(chunk, len(tokens)), entropy, bfloat16)
    if weight.requires_grad and weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    for span in spans(len(tokens), chunk):
        part = whole[span], factor, tokens[span], temperature
        leaves = [t.requires_grad_() for t in buffers.fill(*part) if t is not None]
        loss(span, leaves[0], leaves[1] if entropy else None).backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        entropies = leaves[1].detach() if entropy else None
        gradient[span] = buffers.backward(*part, grads, entropies, weight.grad)
    return gradient
