"""Log-probabilities of chosen tokens. The one place that lines states up with the tokens they predict.

State index: the token at position i of a sequence is predicted by the state (hidden vector) at position i − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from proxlm.rl.sampling_mask import SamplingMask, mask_logits


def predicting_states(response_index: Tensor) -> Tensor:
    """The shift: indices of response tokens in the flat tokens [R] → indices of the states that predict them [R].

    Every prompt has at least one token, so index − 1 is in the same sequence.
    """
    return response_index - 1


def logprobs_and_entropy(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """log π(token) and H(π) of π = softmax(logits / temperature).

    log π(a) = z_a − log Σ_v exp z_v;  H = log Σ_v exp z_v − Σ_v π(v) z_v,  z = logits / temperature − their largest.
    So z ≤ 0 ≤ log Σ exp z: H is a sum of numbers that are not negative, and large logits lose nothing by cancelling.

    Args:
        logits: [R, V], of any float dtype; computed in float32, or in float64 if they are.
        tokens: [R] int64.
        temperature: > 0.
        entropy: Whether entropies are wanted.

    Returns:
        Log-probs [R] and entropies [R] or None, in nats.
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and tokens {tuple(tokens.shape)} do not fit [R, V] and [R]"
        )
    logprobs, entropies = _LogProbs.apply(logits, tokens, temperature, entropy)
    return logprobs, entropies if entropy else None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    z = logits if logits.dtype == torch.float64 else logits.float()
    return z / temperature if temperature != 1.0 else z


class _LogProbs(torch.autograd.Function):
    """The formulas of `logprobs_and_entropy`, with a backward that goes over the logits a few times only.

    ∂ log π(a) / ∂ z_v = [v = a] − π(v);  ∂ H / ∂ z_v = −π(v) (log π(v) + H). Nothing of the logits' size is kept
    but the logits. Not for differentiating twice.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, entropy: bool) -> Any:
        z = _scaled(logits, temperature)
        largest = z.amax(-1, keepdim=True)
        z = z - largest if z is logits else z.sub_(largest)
        chosen, shares = z.gather(-1, tokens[:, None])[:, 0], z.exp()
        sums = shares.sum(-1)
        log_normaliser = sums.log()
        entropies = None
        if entropy:
            # A token that is impossible (logit −inf) contributes 0 · −inf, which is 0 in the limit.
            products = shares.mul_(z.masked_fill_(z == -torch.inf, 0.0))
            entropies = log_normaliser - products.sum(-1) / sums
        ctx.save_for_backward(logits, tokens, largest, log_normaliser, entropies)
        ctx.temperature = temperature
        return chosen - log_normaliser, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, tokens, largest, log_normaliser, entropies = ctx.saved_tensors
        log_probabilities = (_scaled(logits, ctx.temperature) - largest).sub_(log_normaliser[:, None])
        if entropies is None:
            gradient = log_probabilities.exp_().mul_(-grads[0][:, None])
        else:
            gradient = log_probabilities.exp()
            log_probabilities.masked_fill_(gradient == 0, 0.0)
            factor = (
                log_probabilities.add_(entropies[:, None]).mul_(grads[1][:, None]).add_(grads[0][:, None])
            )
            gradient.mul_(factor.neg_())
        gradient.scatter_add_(-1, tokens[:, None], grads[0][:, None])
        if ctx.temperature != 1.0:
            gradient.div_(ctx.temperature)
        return gradient.to(logits.dtype), None, None, None


def spans(count: int, size: int) -> Iterator[slice]:
    """0 … count in slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def chunked_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = 1024,
    mask: SamplingMask | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`logprobs_and_entropy(head(hidden), ...)` without ever holding logits for more than `chunk` states.

    Memory follows the response, not the vocabulary: the backward pass computes each chunk's logits again.

    Args:
        hidden: States that predict the tokens [R, H].
        head: Maps states [r, H] to logits [r, V].
        tokens: [R] int64.
        temperature: > 0.
        entropy: Whether entropies are wanted.
        chunk: How many states' logits are held at once.
        mask: The sets that the tokens were sampled from, over which π is renormalised; None: the whole vocabulary.

    Returns:
        Log-probs [R] and entropies [R] or None, in nats.
    """
    if hidden.shape[:1] != tokens.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and tokens {tuple(tokens.shape)} do not fit [R, H] and [R]"
        )

    def one(h: Tensor, t: Tensor, span: slice) -> tuple[Tensor, Tensor | None]:
        return logprobs_and_entropy(mask_logits(head(h), mask, span), t, temperature, entropy)

    if len(tokens) <= chunk:
        return one(hidden, tokens, slice(None))
    pieces = []
    for span in spans(len(tokens), chunk):
        h, t = hidden[span], tokens[span]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(one, h, t, span, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(one(h, t, span))
    logprobs = torch.cat([piece[0] for piece in pieces])
    return logprobs, torch.cat([piece[1] for piece in pieces]) if entropy else None
