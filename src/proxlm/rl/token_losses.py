"""Losses of predicted tokens or classes beside plain cross-entropy: label smoothing and the focal loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from proxlm.rl.logprobs import spans

_SMALLEST = 1e-30


def focal_loss(logprobs: Tensor, gamma: float) -> Tensor:
    """−(1 − p)^γ log p with p = exp(log-prob): what is likely already counts less (Lin et al. 2017, eq. 4).

    Args:
        logprobs: log p of the right token or class, [n].
        gamma: γ ≥ 0; 0 is cross-entropy.

    Returns:
        The loss of each, [n], in nats.
    """
    # Of p = 1 the power's gradient is infinite for γ < 1, where the loss and its own gradient are 0.
    missing = (-torch.expm1(logprobs)).clamp_min(_SMALLEST)
    return -(missing**gamma) * logprobs


def smoothed_losses(
    hidden: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, smoothing: float, chunk: int
) -> Tensor:
    """(1 − ε) (−log p(token)) + ε · mean over the vocabulary of −log p: torch's cross-entropy with label smoothing.

    Szegedy et al. 2016, section 7. Logits of no more than `chunk` states exist at once, in the backward pass, too,
    which computes them again.

    Args:
        hidden: States that predict the tokens, [R, H].
        head: Maps states [r, H] to logits [r, V].
        tokens: [R] int64.
        smoothing: ε, from 0 to 1.
        chunk: How many states' logits are held at once.

    Returns:
        The loss of each token, [R], in nats.
    """

    def one(states: Tensor, right: Tensor) -> Tensor:
        return cross_entropy(head(states).float(), right, reduction="none", label_smoothing=smoothing)

    pieces = []
    for span in spans(len(tokens), chunk):
        if torch.is_grad_enabled() and len(tokens) > chunk:
            piece = checkpoint(one, hidden[span], tokens[span], use_reentrant=False, preserve_rng_state=False)
        else:
            piece = one(hidden[span], tokens[span])
        pieces.append(piece)
    return torch.cat(pieces)
