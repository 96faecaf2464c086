"""One update: epochs × minibatches × micro-batches over an experience."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from proxlm.config.signature import checked
from proxlm.models.forward import head_backward, head_logprobs, response_states
from proxlm.train.common.memory import failing_together
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.ppo.critic import PendingGradient, value_loss
from proxlm.train.ppo.learner import Learner
from proxlm.train.ppo.minibatch_statistics import MinibatchStats
from proxlm.train.ppo.plan import MicroBatch, Minibatch, UpdatePlan
from proxlm.train.ppo.policy_loss import StepLoss, step_loss
from proxlm.train.ppo.prepare import Prepared
from proxlm.train.ppo.trpo import trust_region_update
from proxlm.types import Experience, Progress


@checked()
def update(learner: Learner, prepared: Prepared, on_progress: Progress | None = None) -> list[MinibatchStats]:
    """Learn from an experience: `ppo.epochs` passes over it, or fewer where `ppo.target_kl` ends them.

    Splitting a minibatch into micro-batches, or over ranks, changes memory, not the gradient. With the loss "trpo"
    the policy takes one trust-region step on the whole batch, and the passes are the critic's.

    Args:
        learner: What learns.
        prepared: The experience, with the plan and the numbers of its step. A first gradient of the critic in it is
            used once.
        on_progress: Called with (done, total) optimiser steps.

    Returns:
        The statistics of each optimiser step, in order; the same on all ranks.

    Raises:
        RunError: Where a single sequence is too much for the memory.
    """
    stats, optimisers = list[MinibatchStats](), dict(learner.optimisers)
    policy_learns = not prepared.parameters.critic_only
    pending = prepared.first_gradient
    if pending is not None and pending.used:
        pending = None  # by an earlier update from this experience
    if pending is not None:
        pending.install(optimisers["critic"].named)
    for optimiser in optimisers.values():
        optimiser.hold()
    if learner.config.ppo.loss == "trpo" and policy_learns:
        stats.append(trust_region_update(learner, prepared))
        policy_learns = False
    if not policy_learns:
        del optimisers["policy"]
    if optimisers:
        stats += _epochs(learner, prepared, optimisers, pending, on_progress)
    for _, optimiser in learner.optimisers:
        optimiser.release()
    return stats


def _epochs(
    learner: Learner,
    prepared: Prepared,
    optimisers: dict[str, Optimiser],
    pending: PendingGradient | None,
    on_progress: Progress | None,
) -> list[MinibatchStats]:
    """The steps of these optimisers in all epochs; pending: the critic's first gradient, where it is installed."""
    ppo, plan, stats = learner.config.ppo, prepared.plan, list[MinibatchStats]()
    planned = ppo.epochs * ppo.minibatches
    gradient = _MinibatchGradient(learner, prepared, optimisers, pending)
    for epoch in range(ppo.epochs):
        minibatches = plan.epoch(epoch)
        for minibatch in minibatches:
            stats.append(gradient(minibatch))
            done, total = plan.step * planned + len(stats) - 1, ppo.steps * planned
            for name, optimiser in optimisers.items():
                stats[-1].grad_norm[name], stats[-1].lr[name] = optimiser.step(done, total)
            if on_progress is not None:
                on_progress(len(stats), planned)
        seen = [s.approx_kl for s in stats[-len(minibatches) :]]
        if ppo.target_kl > 0 and sum(seen) / len(seen) > ppo.target_kl:
            break
    return stats


class _MinibatchGradient:
    """Computes gradients of one minibatch after another.

    pending: the critic's gradient of the first minibatch, which already is in its parameters' `.grad`.
    """

    def __init__(
        self,
        learner: Learner,
        prepared: Prepared,
        optimisers: dict[str, Optimiser],
        pending: PendingGradient | None,
    ) -> None:
        self.learner, self.experience, self.optimisers = learner, prepared.experience, optimisers
        self.plan: UpdatePlan = prepared.plan
        self.loss: StepLoss = step_loss(prepared, learner.config.ppo, learner.algorithm)
        self.pending = pending

    def __call__(self, minibatch: Minibatch) -> MinibatchStats:
        """Leave the sum over all micro-batches and ranks in `.grad`; returns the statistics of all ranks.

        On out-of-memory, on any rank, all begin again with smaller micro-batches.
        """
        ranks, ptx = self.plan.ranks, self.learner.ptx

        def attempt() -> MinibatchStats:
            return failing_together(ranks, partial(self._of_share, self.plan.current(minibatch)))

        stats = self.plan.within_memory(attempt, minibatch.rows, self._clear)
        self.pending = None
        if ptx is not None and "policy" in self.optimisers:
            ptx.advance()
        for optimiser in self.optimisers.values():
            ranks.sum_in_place(p.grad for _, p in optimiser.named if p.grad is not None)
        return stats.over(ranks)

    def _clear(self) -> None:
        """Drop what a failed attempt has left; a pending gradient is dropped with it, and computed again."""
        self.pending = None
        for optimiser in self.optimisers.values():
            optimiser.clear()

    def _of_share(self, minibatch: Minibatch) -> MinibatchStats:
        """Add up the gradient of this rank's micro-batches."""
        learner, models, policy_learns = self.learner, self.learner.models, "policy" in self.optimisers
        stats = MinibatchStats(tokens=minibatch.chosen)
        if self.pending is not None:
            stats.value_loss = self.pending.loss
        positive = self.experience.positive
        weights = None if positive is None else self.plan.weights_of(minibatch.rows, positive)
        for micro in minibatch.micro_batches:
            self._of_micro_batch(micro, weights, stats)
        if policy_learns and learner.ptx is not None:
            stats.ptx_loss = learner.ptx.backward(models.policy, self.plan.budget.tokens, self.plan.ranks)
        return stats

    def _of_micro_batch(self, micro: MicroBatch, positive: Tensor | None, stats: MinibatchStats) -> None:
        learner, models = self.learner, self.learner.models
        part, weights = self.experience.select(micro.rows), micro.weights.to(models.policy.device)
        roots, states = list[Root](), None
        if positive is not None:  # none of them in a pass that is made for another rank's sake
            positive = torch.where(micro.weights > 0, positive[micro.tokens], 0.0).to(weights.device)
        if "policy" in self.optimisers:
            states, root = self._policy_root(part, weights, positive, stats)
            roots.append(root)
            if not models.shared:
                # Two passes, two graphs, one after the other: only one is ever held.
                _backward(roots)
                roots, states = [], None
        if models.value_head is not None and self.pending is None:
            if states is None:
                states = models.critic_states(part.sequences.to(weights.device))[0]
            clip, old = learner.config.ppo.clip_value, part.values
            if part.values_of_heads is not None:
                old = part.values_of_heads
            loss = value_loss(models, states, old, part.returns, weights, clip, part.head_factors)
            stats.value_loss += float(loss.detach())
            roots.append((learner.config.ppo.value_coef * loss, None))
            _backward(roots)

    def _policy_root(
        self, part: Experience, weights: Tensor, positive: Tensor | None, stats: MinibatchStats
    ) -> tuple[Tensor, Root]:
        """The policy's states [R, H] on a micro-batch, with their graph, and where its gradient begins.

        With a token-wise loss that is at the states: the head's part of the backward pass is done, span by span.
        """
        model, sequences = self.learner.models.policy, part.sequences.to(weights.device)
        states, _ = response_states(model, sequences)
        tokens, temperature = sequences.response_tokens, self.loss.temperature
        entropy = self.loss.entropy_coef > 0
        loss, mask = partial(self.loss.of_span, part, weights, positive, stats), part.sampling_mask
        if self.learner.algorithm.tokenwise:
            return states, (states, head_backward(model, states, tokens, temperature, entropy, loss, mask))
        logprobs, entropies = head_logprobs(model, states, tokens, temperature, entropy, mask)
        return states, (loss(slice(0, len(states)), logprobs, entropies), None)


# A tensor to start the backward pass from, with its known gradient (None for a scalar loss).
Root = tuple[Tensor, Tensor | None]


def _backward(roots: list[Root]) -> None:
    # With adapters on the head alone no state has a gradient; the head's part is done by then.
    learning = [(tensor, gradient) for tensor, gradient in roots if tensor.requires_grad]
    if learning:
        torch.autograd.backward([tensor for tensor, _ in learning], [gradient for _, gradient in learning])
