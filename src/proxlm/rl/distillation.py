"""What a student loses to its teacher at each token: divergences of two distributions over the vocabulary.

p is the teacher's distribution, q the student's. A token that one of them excludes has the log-probability −∞. Pure
functions of tensors; gradients go to the student's side where it has a graph.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# exp of it is 0 in every precision, and it can be multiplied by 0.
_NEVER = -1e4

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v): the student must cover all that the teacher finds likely.

    Its gradient is that of the cross-entropy with soft targets (Hinton, Vinyals and Dean 2015).

    Args:
        teacher: log p [..., V].
        student: log q [..., V].

    Returns:
        [...], in nats.
    """
    return _kl(teacher, student)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ_v q_v (log q_v − log p_v): the student must not go where the teacher does not (Gu et al. 2024).

    Arguments and result as in `forward_kl`.
    """
    return _kl(student, teacher)


def jensen_shannon(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """JSD_β = β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = β p + (1 − β) q (Agarwal et al. 2024, GKD, eq. 1).

    Symmetric at β = ½, and at most log 2 there. JSD_β / β → KL(p ‖ q) as β → 0, JSD_β / (1 − β) → KL(q ‖ p) as β → 1.

    Args:
        teacher: log p [..., V].
        student: log q [..., V].
        beta: β, between 0 and 1, both excluded.

    Returns:
        [...], in nats.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta}")
    middle = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, middle) + (1 - beta) * _kl(student, middle)


def top_and_rest(logits: Tensor, tokens: Tensor) -> Tensor:
    """The distribution softmax(logits) over k given tokens and "any other": log-probs [..., k + 1].

    A divergence of two such distributions is that of the whole ones seen through fewer events: never more (data
    processing), and with all tokens the same. With the teacher's k likeliest tokens it needs k numbers of the teacher
    for each position.

    Args:
        logits: Of the whole vocabulary [..., V]. Not for differentiating twice.
        tokens: k different tokens for each position [..., k] int64; with k = V there is no other.
    """
    if tokens.shape[-1] == logits.shape[-1]:
        return logits.log_softmax(-1).gather(-1, tokens)
    found: Tensor = _TopAndRest.apply(logits, tokens)
    return found


class _TopAndRest(torch.autograd.Function):
    """The log-probs of `top_and_rest`, with a backward that goes over the logits once.

    ∂ / ∂ z_v of Σ_j g_j log Q_j = [v among them] g_v + [v is another] g_other q_v / Q_other − q_v Σ_j g_j.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        largest = logits.amax(-1, keepdim=True)
        q = logits.softmax(-1)
        # log Σ exp(z − largest) = −log of the largest probability.
        chosen = logits.gather(-1, tokens) - largest + q.amax(-1, keepdim=True).log()
        q.scatter_(-1, tokens, 0.0)
        others = q.sum(-1, keepdim=True)
        ctx.save_for_backward(q, tokens, chosen, others)
        return torch.cat([chosen, others.log()], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        q, tokens, chosen, others = ctx.saved_tensors
        of_chosen, of_others = gradient[..., :-1], gradient[..., -1:]
        total = gradient.sum(-1, keepdim=True)
        # Where there are no others, q is 0 at all of them.
        factor = of_others / others.clamp_min(torch.finfo(others.dtype).tiny) - total
        result = q * factor
        return result.scatter_(-1, tokens, of_chosen - chosen.exp() * total), None


def divergence(teacher: Tensor, student: Tensor, kind: Divergence, beta: float = 0.5) -> Tensor:
    """The divergence of that name; β is jsd's. Arguments and result as in `forward_kl`."""
    if kind == "forward_kl":
        return forward_kl(teacher, student)
    if kind == "reverse_kl":
        return reverse_kl(teacher, student)
    return jensen_shannon(teacher, student, beta)


class SoftTargets(NamedTuple):
    """A teacher's distributions for R tokens, at the temperature of the loss.

    Attributes:
        logprobs: log p [R, V], or [R, k + 1] of the tokens in `tokens` and of any other one.
        tokens: The k likeliest tokens [R, k] int64; None: `logprobs` has the whole vocabulary.
    """

    logprobs: Tensor
    tokens: Tensor | None = None


def soft_targets(logits: Tensor, temperature: float = 1.0, top_k: int = 0) -> SoftTargets:
    """softmax(logits / T) [R, V], or its k likeliest tokens and the rest; top_k = 0: all."""
    if not 0 < top_k < logits.shape[-1]:
        return SoftTargets((logits / temperature).log_softmax(-1))
    tokens = logits.topk(top_k, -1).indices
    return SoftTargets(top_and_rest(logits / temperature, tokens), tokens)


def distillation_loss(
    targets: SoftTargets,
    logits: Tensor,
    tokens: Tensor,
    kind: Divergence = "forward_kl",
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    cross_entropy: float = 0.0,
) -> Tensor:
    """(1 − α) T² D(p, softmax(z / T)) − α log softmax(z)[token].

    T² keeps the size of the gradient when T changes (Hinton, Vinyals and Dean 2015, section 2).

    Args:
        targets: p, at the temperature T.
        logits: The student's, z [R, V].
        tokens: The text's tokens [R] int64.
        kind: D, see `divergence`.
        beta: β of jsd.
        temperature: T > 0.
        cross_entropy: α, from 0 to 1.

    Returns:
        The loss of each token [R], in nats.
    """
    if targets.logprobs.shape[:1] != logits.shape[:1] or tokens.shape != logits.shape[:1]:
        raise ValueError(
            f"targets {tuple(targets.logprobs.shape)}, logits {tuple(logits.shape)} and tokens"
            f" {tuple(tokens.shape)} are of different numbers of tokens"
        )
    scaled = logits if temperature == 1.0 else logits / temperature
    if targets.tokens is not None:
        student = top_and_rest(scaled, targets.tokens)
    elif targets.logprobs.shape == logits.shape:
        student = scaled.log_softmax(-1)
    else:
        raise ValueError(
            f"targets {tuple(targets.logprobs.shape)} and logits {tuple(logits.shape)} do not fit"
        )
    loss = (1 - cross_entropy) * temperature**2 * divergence(targets.logprobs, student, kind, beta)
    if cross_entropy:
        loss = loss + cross_entropy * torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    return loss


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Σ p (log p − log q), where 0 log 0 is 0 and so is its gradient."""
    gone = first == -torch.inf
    if gone.any():
        first, second = first.masked_fill(gone, _NEVER), second.masked_fill(gone, _NEVER)
    return (first.exp() * (first - second)).sum(-1)
