"""Log-probabilities behind an output head that is one matrix, in place: one buffer holds the logits of a span.

The same formulas as `rl/logprobs.py`, which takes any head. Here the logits become their probabilities and then their
gradient in the same buffer (with a second one for the entropy), and the head's gradient is added to where it is kept:
`backward_through_linear_head` writes to `weight.grad` itself, so it is used for weights without hooks only
(`LanguageModel.head_weight`). Products may be of numbers rounded to bf16, and give such; all else is in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from proxlm.rl.logprobs import spans
from proxlm.rl.sampling_mask import SamplingMask


class _Buffers:
    """Memory for the logits of one span [r, V] at a time, and for log-probabilities where entropies are asked for.

    low: what products round their factors and results to; None: the states' own dtype.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, rows: int, entropy: bool, low: torch.dtype | None
    ) -> None:
        self.probabilities = hidden.new_empty(rows, len(weight))
        self.log_probabilities = hidden.new_empty(rows, len(weight)) if entropy else None
        self.weight = weight if low is None else weight.to(low)
        self.low = None if low is None else hidden.new_empty(rows, len(weight), dtype=low)

    def fill(
        self,
        hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        dropped: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """log π(token) and entropy [r] for hidden [r, H]; leaves π, and log π if there is a buffer for it, [r, V].

        dropped: True for the tokens that π is 0 for, [r, V] bool; their log π is left as 0.

        z less its largest, whose probability is p: log Σ exp z = −log p, which rounds no worse than the sum, and
        large logits lose nothing by cancelling.
        """
        z = self.probabilities[: len(hidden)]
        if self.low is None:
            torch.mm(hidden, self.weight.T, out=z)
        else:
            z.copy_(torch.mm(hidden.to(self.low.dtype), self.weight.T, out=self.low[: len(hidden)]))
        if temperature != 1.0:
            z.div_(temperature)
        if dropped is not None:
            z.masked_fill_(dropped, -torch.inf)
        largest = z.amax(-1, keepdim=True)
        chosen = z.gather(-1, tokens[:, None]) - largest
        log = self.log_probabilities
        if log is not None:
            log = torch.sub(z, largest, out=log[: len(hidden)])
        p = torch.softmax(z, -1, out=z)
        log_of_largest = p.amax(-1, keepdim=True).log()
        logprobs = (chosen + log_of_largest)[:, 0]
        if log is None:
            return logprobs, None
        log.add_(log_of_largest)
        if dropped is not None:  # or 0 · −inf would be NaN
            log.masked_fill_(dropped, 0.0)
        return logprobs, -torch.bmm(p[:, None], log[:, :, None])[:, 0, 0]

    def backward(
        self,
        hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        grad_logprobs: Tensor,
        grad_entropies: Tensor | None,
        entropies: Tensor | None,
        weight_grad: Tensor | None,
    ) -> Tensor:
        """The gradient of hidden [r, H], after `fill` with the same arguments; the weight's is added to weight_grad.

        ∂ / ∂ z_v = g ([v = a] − π_v) − g_H π_v (log π_v + H), in place of π.
        """
        grad_z, grad_logprobs = self.probabilities[: len(tokens)], grad_logprobs[:, None]
        if entropies is None or grad_entropies is None:
            grad_z.mul_(-grad_logprobs)
        else:
            assert self.log_probabilities is not None
            factor = self.log_probabilities[: len(tokens)].add_(entropies[:, None])
            factor.mul_(grad_entropies[:, None])
            grad_z.mul_(factor.add_(grad_logprobs).neg_())
        grad_z.scatter_add_(-1, tokens[:, None], grad_logprobs)
        if temperature != 1.0:
            grad_z.div_(temperature)
        if self.low is not None:
            rounded = self.low[: len(tokens)].copy_(grad_z)
            if weight_grad is not None:
                weight_grad.add_(rounded.T @ hidden.to(rounded.dtype))
            return rounded @ self.weight
        if weight_grad is not None:
            weight_grad.addmm_(grad_z.T, hidden)
        return grad_z @ self.weight


def _dropped(mask: SamplingMask | None, span: slice) -> Tensor | None:
    return None if mask is None else mask.dropped(span)


def linear_head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    mask: SamplingMask | None = None,
    low: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of tokens under π = softmax(hidden weightᵀ / temperature). Not for differentiating twice.

    Args:
        hidden: States [R, H], float32 or float64.
        weight: The head's matrix [V, H], of the same dtype.
        tokens: [R] int64.
        temperature: > 0.
        entropy: Whether entropies are computed.
        chunk: How many tokens' logits exist at once; they are computed again in the backward pass.
        mask: The sets that the tokens were sampled from, over which π is renormalised; None: the whole vocabulary.
        low: What products round their factors and results to, bfloat16 for instance; None: nothing.

    Returns:
        log π(token) [R] and H(π) [R] or None, in nats.
    """
    logprobs, entropies = _LinearHead.apply(hidden, weight, tokens, temperature, entropy, chunk, mask, low)
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
        mask: SamplingMask | None,
        low: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.temperature, ctx.entropy, ctx.chunk, ctx.mask, ctx.low = temperature, entropy, chunk, mask, low
        buffers = _Buffers(hidden, weight, min(chunk, len(tokens)), entropy, low)
        logprobs = hidden.new_empty(len(tokens))
        entropies = torch.empty_like(logprobs) if entropy else None
        for span in spans(len(tokens), chunk):
            logprobs[span], found = buffers.fill(
                hidden[span], tokens[span], temperature, _dropped(mask, span)
            )
            if entropies is not None and found is not None:
                entropies[span] = found
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        buffers = _Buffers(hidden, weight, min(ctx.chunk, len(tokens)), ctx.entropy, ctx.low)
        for span in spans(len(tokens), ctx.chunk):
            h, t = hidden[span], tokens[span]
            _, entropies = buffers.fill(h, t, ctx.temperature, _dropped(ctx.mask, span))
            of_entropies = grad_entropies[span] if grad_entropies is not None else None
            grad_hidden[span] = buffers.backward(
                h, t, ctx.temperature, grad_logprobs[span], of_entropies, entropies, grad_weight
            )
        return grad_hidden, grad_weight, None, None, None, None, None, None


def backward_through_linear_head(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    loss: Callable[[slice, Tensor, Tensor | None], Tensor],
    mask: SamplingMask | None = None,
    low: torch.dtype | None = None,
) -> Tensor:
    """As `backward_through_head`, for a head that is weight [V, H]. Its gradient is added to weight.grad.

    low: as in `linear_head_logprobs`.
    """
    grad_hidden, states, matrix = torch.empty_like(hidden), hidden.detach(), weight.detach()
    buffers = _Buffers(states, matrix, min(chunk, len(tokens)), entropy, low)
    if weight.requires_grad and weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    for span in spans(len(tokens), chunk):
        h, t = states[span], tokens[span]
        logprobs, entropies = buffers.fill(h, t, temperature, _dropped(mask, span))
        leaves = [x.requires_grad_() for x in (logprobs, entropies) if x is not None]
        loss(span, logprobs, entropies).backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        of_entropies, found = (grads[1], leaves[1].detach()) if entropy else (None, None)
        grad_hidden[span] = buffers.backward(h, t, temperature, grads[0], of_entropies, found, weight.grad)
    return grad_hidden
