"""The trust-region update: natural gradient and line search on the policy's own parameters (loss = "trpo").

Fisher-vector products differentiate twice, so attention runs on its plain implementation, and one micro-batch's
logits are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from proxlm.models.forward import micro_batches, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.rl.losses import PolicyLoss
from proxlm.rl.ragged import ragged_index
from proxlm.rl.trust_region import trust_region_step
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.train.ppo.update import Learner, minibatch_weights, plan_pass, weighted_loss
from proxlm.types import Experience

Part = tuple[Experience, Tensor]


def trust_region_update(learner: Learner, experience: Experience) -> MinibatchStats:
    """One step of the policy on the whole batch: the surrogate rises and the mean KL per token is at most δ.

    The parameters are left as they were where the line search finds no such step.
    """
    model, settings = learner.models.policy, learner.config.trpo
    parameters = [p for _, p in learner.models.policy_parameters()]
    parts = _whole(learner, experience)
    share = max(1, round(settings.fisher_share * len(experience.sequences)))
    sample = parts if share == len(experience.sequences) else _first(learner, experience, share)
    stats = MinibatchStats(tokens=max(1, int(experience.action_mask.sum())))
    loss_gradient, before = _loss_gradient(learner, parts, parameters, stats)
    gradient = -loss_gradient
    start = _flat(parameters)

    def fisher(v: Tensor) -> Tensor:
        product = fisher_product(model, sample, parameters, v, learner.temperature)
        return product + settings.damping * v

    def measure(step: Tensor) -> tuple[float, float]:
        return _try_step(learner, parts, before, parameters, start, step)

    found = trust_region_step(
        gradient, fisher, measure, settings.delta, settings.iterations, settings.halvings
    )
    _assign(parameters, start + found.step)
    stats.grad_norm["policy"] = float(gradient.norm())
    # What the ratios above saw was the policy before its one step; this is how far the step went.
    stats.approx_kl = found.kl
    stats.extra = {
        "trpo/kl": found.kl,
        "trpo/improvement": found.improvement,
        "trpo/halvings": float(found.tries),
        "trpo/accepted": float(found.accepted),
        "trpo/step_norm": float(found.step.norm()),
    }
    return stats


def _whole(learner: Learner, experience: Experience) -> list[Part]:
    """All rows, in the micro-batches that `prepare` ran: the same forward passes, so the ratio is exactly 1."""
    plan = plan_pass(experience.sequences.lengths, learner.config, learner.seed, learner.step, epoch=0)
    layout = [micro for minibatch in plan for micro in minibatch]
    return _parts(learner, experience, torch.cat(layout), layout)


def _first(learner: Learner, experience: Experience, count: int) -> list[Part]:
    """The first `count` rows."""
    rows = torch.arange(count)
    budget = learner.config.micro_batch_tokens
    return _parts(learner, experience, rows, micro_batches(experience.sequences.lengths[rows], budget))


def _parts(learner: Learner, experience: Experience, rows: Tensor, layout: list[Tensor]) -> list[Part]:
    """The micro-batches of `layout`, each with its tokens' weights over all of `rows`."""
    weights = minibatch_weights(experience, rows, learner.config.aggregation, learner.limit)
    offsets = experience.sequences.response_offsets
    return [
        (experience.select(micro), weights[ragged_index(offsets, micro)].to(learner.models.policy.device))
        for micro in layout
    ]


def _loss_gradient(
    learner: Learner, parts: Sequence[Part], parameters: Sequence[nn.Parameter], stats: MinibatchStats
) -> tuple[Tensor, list[Tensor]]:
    """The gradient [P] of the policy loss at the present parameters, and each micro-batch's loss there."""
    total, losses = torch.zeros_like(_flat(parameters)), []
    for part, weights in parts:
        loss, terms = _surrogate(learner, part, weights)
        stats.policy_loss += float(loss.detach())
        stats.add_terms(terms, part.action_mask.to(weights.device))
        losses.append(loss.detach())
        total += _flat(torch.autograd.grad(loss, list(parameters)))
    return total, losses


def _surrogate(learner: Learner, part: Experience, weights: Tensor) -> tuple[Tensor, PolicyLoss]:
    outputs = learner.models.policy_outputs(part.sequences.to(weights.device), learner.temperature)
    return weighted_loss(learner, part, weights, outputs.logprobs)


def fisher_product(
    model: LanguageModel,
    parts: Sequence[Part],
    parameters: Sequence[nn.Parameter],
    vector: Tensor,
    temperature: float,
) -> Tensor:
    """F v: the Hessian of the mean KL from the present policy, at the present parameters, times v. [P] → [P]

    Exact over the vocabulary, not from the sampled tokens alone. Its cross-entropy has the same derivatives as
    the KL, for the entropy of the fixed side is a constant.
    """
    total = torch.zeros_like(vector)
    with sdpa_kernel(SDPBackend.MATH):
        for part, weights in parts:
            logprobs = torch.log_softmax(_logits(model, part, temperature, twice=True), -1)
            cross_entropy = -(weights * (logprobs.detach().exp() * logprobs).sum(-1)).sum()
            first = _flat(torch.autograd.grad(cross_entropy, list(parameters), create_graph=True))
            total += _flat(torch.autograd.grad(first.dot(vector), list(parameters)))
    return total


def _logits(model: LanguageModel, part: Experience, temperature: float, twice: bool = False) -> Tensor:
    """[r, V] of the response tokens of one micro-batch, in float32; twice: to be differentiated twice."""
    states = response_states(model, part.sequences.to(model.device), twice=twice)[0]
    return model.logits(states).float() / temperature


@torch.no_grad()
def _try_step(
    learner: Learner,
    parts: Sequence[Part],
    before: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    start: Tensor,
    step: Tensor,
) -> tuple[float, float]:
    """How much the surrogate rises from `before`, each part's loss at `start`, and the exact mean KL from the old
    policy, with `step` taken.
    """
    model, rise, kl = learner.models.policy, 0.0, 0.0
    for (part, weights), loss_before in zip(parts, before, strict=True):
        _assign(parameters, start)
        old = torch.log_softmax(_logits(model, part, learner.temperature), -1)
        _assign(parameters, start + step)
        new = torch.log_softmax(_logits(model, part, learner.temperature), -1)
        after, _ = _surrogate(learner, part, weights)
        rise += float(loss_before - after)
        kl += float((weights * (old.exp() * (old - new)).sum(-1)).sum())
    _assign(parameters, start)
    return rise, kl


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    for p, values in zip(parameters, _pieces(parameters, flat), strict=True):
        p.copy_(values)


def _pieces(parameters: Sequence[nn.Parameter], flat: Tensor) -> Iterator[Tensor]:
    for p, values in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        yield values.view_as(p)
