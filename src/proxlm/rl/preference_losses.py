"""Losses of models that learn from comparisons and labels: Bradley–Terry, scores, classes, steps; pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """−(1 − ε) log σ(d) − ε log σ(−d) with d = r_chosen − r_rejected − m.

    Bradley and Terry 1952; for language models Ouyang et al. 2022, eq. 1.

    The margin is that of Touvron et al. 2023 (Llama 2, section 3.2.2), the smoothing that of a share ε of comparisons
    that are the wrong way round (Mitchell 2023, conservative DPO).

    Args:
        chosen: r of the better completions [n].
        rejected: r of the worse ones [n].
        margins: m [n]; None: 0.
        label_smoothing: ε, from 0 to below 0.5.

    Returns:
        The loss of each comparison [n], in nats.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f"shapes differ: {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    lead = chosen - rejected if margins is None else chosen - rejected - margins
    loss = -logsigmoid(lead)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-lead)
    return loss


def centring_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)² of each comparison [n] (Eisenstein et al. 2023, eq. 7).

    A comparison determines scores up to a constant of each prompt; this chooses the one with which they are around 0.
    """
    return (chosen + rejected).square()


def implicit_rewards(logprobs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """β (log π(y|x) − log π_ref(y|x)): the reward whose optimum under a KL penalty is π (Rafailov et al. 2023).

    DPO's loss is `bradley_terry_loss` of these, eq. 7; the prompt's part of the reward falls out of a comparison.

    Args:
        logprobs: log π of whole responses [n].
        reference: log π_ref of them [n].
        beta: β, the KL coefficient of that objective.

    Returns:
        [n].
    """
    return beta * (logprobs - reference)


def score_loss(outputs: Tensor, targets: Tensor, delta: float | None = None) -> Tensor:
    """The mean over a record's K scores of e², or of Huber's loss of e (Huber 1964), with e = output − target.

    Huber's is e² / 2 where |e| ≤ δ, and δ (|e| − δ / 2) beyond: the gradient of an outlier is δ at most.

    Args:
        outputs: [n, K].
        targets: [n, K]; NaN: the record has no such score, which then counts nowhere. Each record has one or more.
        delta: δ of Huber's loss; None: squared error.

    Returns:
        The loss of each record [n].
    """
    if outputs.shape != targets.shape:
        raise ValueError(f"shapes differ: {tuple(outputs.shape)}, {tuple(targets.shape)}")
    known = ~targets.isnan()
    error = torch.where(known, outputs - targets, 0.0)
    loss = error.square()
    if delta is not None:
        loss = torch.where(error.abs() <= delta, loss / 2, delta * (error.abs() - delta / 2))
    return loss.sum(1) / known.sum(1)


def class_loss(outputs: Tensor, classes: Tensor, smoothing: float = 0.0) -> Tensor:
    """−log softmax(outputs)[class]: the cross-entropy of k classes.

    Args:
        outputs: Logits [n, k].
        classes: The number of the right class of each record [n].
        smoothing: ε, the share of the target that all classes have alike (Szegedy et al. 2016).

    Returns:
        The loss of each record [n], in nats.
    """
    return cross_entropy(outputs, classes.long(), reduction="none", label_smoothing=smoothing)


def step_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over a response's steps of −y log σ(z) − (1 − y) log σ(−z): binary cross-entropy.

    Lightman et al. 2023, section 2.6 (a label for each step, learnt at its last token); Wang et al. 2024,
    Math-Shepherd, eq. 2, whose soft labels y are between 0 and 1.

    Args:
        logits: z of each step [n, S].
        labels: y [n, S]; NaN: there is no such step. Each response has one or more.

    Returns:
        The loss of each response [n], in nats.
    """
    known = ~labels.isnan()
    loss = binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return torch.where(known, loss, 0.0).sum(1) / known.sum(1)


@torch.no_grad()
def share_preferred(leads: Tensor) -> Tensor:
    """1 where the chosen completion leads, 0 where it trails, ½ for a tie [n]."""
    return (leads > 0).double() + 0.5 * (leads == 0).double()
