"""One update: passes × minibatches × micro-batches over an experience."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.kernels.gradients import gradients_in_place
from proxlm.models.actor_critic import ActorCritic
from proxlm.models.forward import head_backward, head_logprobs, micro_batches, response_states
from proxlm.rl.kl import kl_estimate
from proxlm.rl.losses import PolicyLoss, token_weights
from proxlm.rl.policy_losses import LossInputs
from proxlm.rl.ragged import offsets_of, ragged_index
from proxlm.seeds import Purpose, derive_seed
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.algorithms import LossFunction
from proxlm.train.ppo.critic import CriticsFirst, value_loss
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.train.ppo.ptx import PtxText
from proxlm.types import Experience, Progress, Rollout


@dataclass(frozen=True)
class Optimisers:
    """One optimiser for the policy, one for the critic (its trunk, if it has its own, and the value head)."""

    policy: Optimiser
    critic: Optimiser | None


@dataclass(frozen=True)
class Learner:
    """All that an update needs besides the experience. limit: the longest response in tokens; kl_coef: β of a KL
    in the loss, else 0; entropy_coef: of this step; policy_learns: False while only the critic does; tokenwise: the
    loss of a token needs nothing of other tokens, which saves computing logits twice; budget: tokens in a pass, which
    fall where memory does not do; critics_first: the critic's gradient of the first minibatch, where it was taken.
    """

    models: ActorCritic
    optimisers: Optimisers
    config: PPOSettings
    loss: LossFunction
    temperature: float
    limit: int
    seed: int
    step: int
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    policy_learns: bool = True
    ptx: PtxText | None = None
    tokenwise: bool = False
    budget: TokenBudget | None = None
    critics_first: CriticsFirst | None = None


def plan_pass(lengths: Tensor, config: PPOSettings, seed: int, step: int, epoch: int) -> list[list[Tensor]]:
    """The minibatches of one pass, each a list of micro-batches of row indices.

    Rows are shuffled anew for each pass, by a generator seeded with (seed, step, epoch) alone. With fewer rows
    than minibatches there are as many as rows. lengths [B].
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, Purpose.PASS, step, epoch))
    order = torch.randperm(len(lengths), generator=generator)
    minibatches = torch.tensor_split(order, min(config.minibatches, len(order)))
    return [
        [rows[i] for i in micro_batches(lengths[rows], config.micro_batch_tokens)] for rows in minibatches
    ]


def minibatch_weights(batch: Experience | Rollout, rows: Tensor, aggregation: str, limit: int) -> Tensor:
    """Each token's weight in the loss, fixed over the whole minibatch: [R], 0 outside the given rows.

    limit: the longest response in tokens.
    """
    places = ragged_index(batch.sequences.response_offsets, rows)
    lengths = batch.sequences.response_lengths[rows]
    weights = torch.zeros(len(batch.action_mask))
    weights[places] = token_weights(batch.action_mask[places], offsets_of(lengths), aggregation, limit)
    return weights


def update(
    learner: Learner, experience: Experience, on_progress: Progress | None = None
) -> list[MinibatchStats]:
    """Learn from an experience. Returns the statistics of each optimiser step, in order.

    Splitting a minibatch into micro-batches changes memory, not the gradient.
    """
    config, stats = learner.config, list[MinibatchStats]()
    planned = config.epochs * config.minibatches
    if not learner.policy_learns and learner.optimisers.critic is None:
        return stats
    critics_first = learner.critics_first
    for epoch in range(config.epochs):
        plan = plan_pass(experience.sequences.lengths, config, learner.seed, learner.step, epoch)
        for minibatch in plan:
            stats.append(_gradient_within_memory(learner, experience, minibatch, critics_first))
            critics_first = None
            done, total = learner.step * planned + len(stats) - 1, config.steps * planned
            for name, optimiser in _moved(learner).items():
                stats[-1].grad_norm[name], stats[-1].lr[name] = optimiser.step(done, total)
            if on_progress is not None:
                on_progress(len(stats), planned)
        seen = [s.approx_kl for s in stats[-len(plan) :]]
        if config.target_kl > 0 and sum(seen) / len(seen) > config.target_kl:
            break
    return stats


def _moved(learner: Learner) -> dict[str, Optimiser]:
    """The optimisers that step in this update, by name."""
    moved = {"policy": learner.optimisers.policy} if learner.policy_learns else {}
    if learner.optimisers.critic is not None:
        moved["critic"] = learner.optimisers.critic
    return moved


def _gradient_within_memory(
    learner: Learner, experience: Experience, minibatch: list[Tensor], critics: CriticsFirst | None
) -> MinibatchStats:
    """The minibatch's gradient, in the micro-batches given or, where memory does not do, in smaller ones.

    critics: the critic's part of it, where that is done.
    """
    planned, rows = learner.config.micro_batch_tokens, torch.cat(minibatch)
    lengths = experience.sequences.lengths[rows]

    def gradient(tokens: int) -> MinibatchStats:
        smaller = [rows[i] for i in micro_batches(lengths, tokens)]
        with gradients_in_place():
            return _minibatch_gradient(
                learner, experience, minibatch if tokens >= planned else smaller, critics
            )

    def clear() -> None:
        nonlocal critics
        critics = None
        for optimiser in _moved(learner).values():
            optimiser.clear()

    return within_memory(learner.budget or TokenBudget(planned), gradient, lengths, clear)


def _minibatch_gradient(
    learner: Learner, experience: Experience, minibatch: list[Tensor], critics: CriticsFirst | None
) -> MinibatchStats:
    """Accumulate the minibatch's gradient, micro-batch by micro-batch."""
    rows = torch.cat(minibatch)
    weights = minibatch_weights(experience, rows, learner.config.aggregation, learner.limit)
    offsets = experience.sequences.response_offsets
    stats = MinibatchStats(tokens=int(experience.action_mask[ragged_index(offsets, rows)].sum()))
    device, config = learner.models.policy.device, learner.config
    if critics is not None:
        stats.value_loss = critics.loss
    for micro in minibatch:
        part, w = experience.select(micro), weights[ragged_index(offsets, micro)].to(device)
        roots, states = list[Root](), None
        if learner.policy_learns:
            states, root = _policy_gradient(learner, part, w, stats)
            roots.append(root)
            if not learner.models.shared:
                # Two passes, two graphs, one after the other: only one is ever held.
                _backward(roots)
                roots, states = [], None
        if learner.models.value_head is not None and critics is None:
            roots.append((config.value_coef * _value_loss(learner, part, w, stats, states), None))
            _backward(roots)
    if learner.policy_learns and learner.ptx is not None:
        stats.ptx_loss = learner.ptx.backward(
            learner.models.policy, learner.budget.tokens if learner.budget else 0
        )
    return stats


# A tensor to go backward from, with the gradient that is known of it (None for a scalar loss).
Root = tuple[Tensor, Tensor | None]


def _backward(roots: list[Root]) -> None:
    torch.autograd.backward([tensor for tensor, _ in roots], [gradient for _, gradient in roots])


def _policy_gradient(
    learner: Learner, part: Experience, weights: Tensor, stats: MinibatchStats
) -> tuple[Tensor, Root]:
    """The policy's states [R, H] on a micro-batch, with their graph, and where its gradient begins.

    With a tokenwise loss that is at the states: the head's part of the way back has been gone, span by span.
    """
    model, sequences = learner.models.policy, part.sequences.to(weights.device)
    states, _ = response_states(model, sequences)
    rest = (sequences.response_tokens, learner.temperature, learner.entropy_coef > 0)

    def loss(span: slice, logprobs: Tensor, entropy: Tensor | None) -> Tensor:
        return _policy_loss(learner, part, weights, stats, span, logprobs, entropy)

    if learner.tokenwise:
        return states, (states, head_backward(model, states, *rest, loss))
    whole = slice(0, len(states))
    return states, (loss(whole, *head_logprobs(model, states, *rest)), None)


def weighted_loss(
    learner: Learner, part: Experience, weights: Tensor, logprobs: Tensor, span: slice | None = None
) -> tuple[Tensor, PolicyLoss]:
    """A micro-batch's share of the chosen policy loss, and its terms; weights [R] and logprobs [r], those of the
    span's tokens (all, if None), on the model's device."""
    device, config = logprobs.device, learner.config
    at = span or slice(0, len(logprobs))
    terms = learner.loss(
        LossInputs(
            logprobs=logprobs,
            old_logprobs=part.old_logprobs[at].to(device),
            advantages=part.advantages[at].to(device),
            action_mask=part.action_mask[at].to(device),
            offsets=part.sequences.response_offsets.to(device),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            divergence_limit=config.divergence_limit,
            max_log_ratio=config.max_log_ratio,
        )
    )
    return (weights[at] * part.correction[at].to(device) * terms.loss).sum(), terms


def _policy_loss(
    learner: Learner,
    part: Experience,
    weights: Tensor,
    stats: MinibatchStats,
    span: slice,
    logprobs: Tensor,
    entropy: Tensor | None,
) -> Tensor:
    """The policy's loss on a span of a micro-batch's tokens: log-probs and entropy [r], part and weights [R]."""
    config, device = learner.config, weights.device
    policy_loss, terms = weighted_loss(learner, part, weights, logprobs, span)
    loss = policy_loss
    if entropy is not None:
        loss = loss - learner.entropy_coef * (weights[span] * entropy).sum()
    if learner.kl_coef > 0:
        kl = kl_estimate(
            logprobs, part.ref_logprobs[span].to(device), config.kl_estimator, config.max_log_ratio
        )
        kl_loss = (weights[span] * kl).sum()
        loss = loss + learner.kl_coef * kl_loss
        stats.kl_loss += float(kl_loss.detach())
    stats.policy_loss += float(policy_loss.detach())
    stats.add_terms(terms, part.action_mask[span].to(device))
    return loss


def _value_loss(
    learner: Learner, part: Experience, weights: Tensor, stats: MinibatchStats, states: Tensor | None
) -> Tensor:
    """The critic's loss; states [R, H]: the shared trunk's, with their graph, or None for the critic's own."""
    if states is None:
        states = learner.models.critic_states(part.sequences.to(weights.device))[0]
    clip = learner.config.clip_value
    loss = value_loss(learner.models, states, part.values, part.returns, weights, clip)
    stats.value_loss += float(loss.detach())
    return loss
