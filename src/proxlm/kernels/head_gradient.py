"""The gradient of a token-wise loss through any output head, one chunk of logits at a time.

Used in the update, where the loss of a token depends on no other token: each chunk goes forward and backward through
the head before the next one, so its logits need not be computed a second time in the backward pass. `linear_head.py`
does the same in place for a head that is one matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proxlm.rl.logprobs import logprobs_and_entropy, spans
from proxlm.rl.sampling_mask import SamplingMask, mask_logits


def backward_through_head(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    chunk: int,
    loss: Callable[[slice, Tensor, Tensor | None], Tensor],
    mask: SamplingMask | None = None,
) -> Tensor:
    """Return the gradient of a sum of token losses with respect to `hidden`; add the head's own to its parameters.

    Args:
        hidden: States [R, H] that predict the tokens. A graph behind them is not used.
        head: Maps states [r, H] to logits [r, V].
        tokens: The predicted tokens [R], int64.
        temperature: Divides the logits; > 0.
        entropy: Whether `loss` also gets the entropies.
        chunk: How many tokens' logits exist at once.
        loss: loss(span, log-probs [r], entropies [r] or None) → the summed loss of the tokens of a span, a scalar.
        mask: The sets that the tokens were sampled from; None: the whole vocabulary.

    Returns:
        The gradient [R, H], without a graph.
    """
    gradient = torch.empty_like(hidden)
    for span in spans(len(tokens), chunk):
        part = hidden.detach()[span].requires_grad_()
        logits = mask_logits(head(part), mask, span)
        loss(span, *logprobs_and_entropy(logits, tokens[span], temperature, entropy)).backward()
        assert part.grad is not None
        gradient[span] = part.grad
    return gradient
