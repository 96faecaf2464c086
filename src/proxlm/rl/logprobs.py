"""Log-probabilities of chosen tokens. The one place that lines states up with the tokens they predict.

State index: the token at position i of a sequence is predicted by the state (hidden vector) at position i − 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def predicting_states(response_index: Tensor) -> Tensor:
    """The shift: where each response token stands in the flat tokens [R] → where the state that predicts it does.

    Every prompt holds at least one token, so index − 1 is in the same sequence.
    """
    return response_index - 1


def logprobs_and_entropy(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """log π(token) and H(π) of π = softmax(logits / temperature).

    log π(a) = z_a − log Σ_v exp z_v;  H = log Σ_v exp z_v − Σ_v π(v) z_v,  z = logits / temperature.

    Args: logits [R, V], any float dtype (computed in float32, or float64 if given); tokens [R] int64;
    temperature > 0. Returns: log-probs [R] and, if asked, entropy [R], in nats.
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and tokens {tuple(tokens.shape)} do not fit [R, V] and [R]"
        )
    z = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        z = z / temperature
    log_normaliser = torch.logsumexp(z, dim=-1)
    chosen = z.gather(-1, tokens[:, None]).squeeze(-1)
    if not entropy:
        return chosen - log_normaliser, None
    probabilities = torch.exp(z - log_normaliser[:, None])
    # A token that is impossible (logit −inf) contributes 0 · −inf, which is 0 in the limit.
    expected = (probabilities * z.masked_fill(z == -torch.inf, 0.0)).sum(-1)
    return chosen - log_normaliser, log_normaliser - expected


def chunked_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor | None]:
    """`logprobs_and_entropy(head(hidden), ...)` without ever holding logits for more than `chunk` states.

    Memory follows the response, not the vocabulary: in the backward pass each chunk's logits are computed anew.

    Args: hidden [R, H]; head maps [r, H] to logits [r, V]; tokens [R] int64. Returns: as `logprobs_and_entropy`.
    """
    if hidden.shape[:1] != tokens.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and tokens {tuple(tokens.shape)} do not fit [R, H] and [R]"
        )

    def one(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        return logprobs_and_entropy(head(h), t, temperature, entropy)

    if len(tokens) <= chunk:
        return one(hidden, tokens)
    pieces = []
    for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
        if torch.is_grad_enabled():
            pieces.append(checkpoint(one, h, t, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(one(h, t))
    logprobs = torch.cat([piece[0] for piece in pieces])
    return logprobs, torch.cat([piece[1] for piece in pieces]) if entropy else None
