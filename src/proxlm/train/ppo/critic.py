"""The critic's work in a PPO step: reading values before the update, and its loss in the update.

A critic that shares no weights with the policy can take its gradient of the update's first minibatch on the pass that
reads its values: before the first optimiser step that forward pass is the same, so it is made once. The gradient is
handed to the update as a `PendingGradient`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proxlm.config import PPOSettings
from proxlm.distributed.ranks import Ranks
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.value_ensemble import ensemble_loss
from proxlm.train.common.memory import failing_together
from proxlm.train.ppo.algorithms import Algorithm
from proxlm.train.ppo.plan import MicroBatch, Minibatch, UpdatePlan
from proxlm.types import Sequences

Named = Sequence[tuple[str, nn.Parameter]]
# (rows [b], their values [r], their final values [b]) → the critic's targets [r].
ReturnsOf = Callable[[MicroBatch, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PendingGradient:
    """The critic's gradient of the update's first minibatch, computed before the update.

    loss: the value loss of this rank's share; gradients: by parameter name, value_coef included; none once an update
    has taken them.
    """

    loss: float
    gradients: dict[str, Tensor]

    @property
    def used(self) -> bool:
        return not self.gradients

    def install(self, parameters: Named) -> None:
        """Move the gradients to `.grad` of the parameters of these names; none are left here."""
        for name, p in parameters:
            gradient = self.gradients.pop(name)
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)


class CriticValues(NamedTuple):
    """values [R]: V before each response token; final_values [B]: V after each row's last token; float32.

    of_heads: V before each response token, of each of several value heads [R, K]; None: there is one.
    """

    values: Tensor
    final_values: Tensor
    of_heads: Tensor | None = None
    first_gradient: PendingGradient | None = None

    def over(self, ranks: Ranks) -> CriticValues:
        """Those of all ranks, each of which has filled in its rows."""
        of_heads = None if self.of_heads is None else ranks.sum(self.of_heads)
        return self._replace(
            values=ranks.sum(self.values), final_values=ranks.sum(self.final_values), of_heads=of_heads
        )


def no_values(models: ActorCritic | None, rows: int, tokens: int) -> CriticValues:
    """Zeros: of a run without a critic, and to be filled by `fill_values`."""
    heads = 1 if models is None or models.value_head is None else models.value_head.ensemble.heads
    return CriticValues(
        torch.zeros(tokens), torch.zeros(rows), torch.zeros(tokens, heads) if heads > 1 else None
    )


def fill_values(
    found: CriticValues, models: ActorCritic, micro: MicroBatch, states: Tensor, final_states: Tensor
) -> None:
    """Write the values of one micro-batch's states [r, H] and final states [b, H] into `found`."""
    if not micro.padding:
        assert models.value_head is not None
        of_heads = models.value_head.values(states).detach()
        if found.of_heads is not None:
            found.of_heads[micro.tokens] = of_heads.cpu()
        found.values[micro.tokens] = models.value_head.combined(of_heads).cpu()
        found.final_values[micro.rows] = models.value_of(final_states).detach().cpu()


def has_own_passes(models: ActorCritic, ppo: PPOSettings) -> bool:
    """Whether values need forward passes of their own: not on a shared trunk that the policy's passes run through."""
    return models.value_head is not None and (not models.shared or ppo.old_logprobs == "rollout")


def can_learn_while_reading(models: ActorCritic, ppo: PPOSettings, algorithm: Algorithm) -> bool:
    """Whether `read_values` may take the first minibatch's gradient.

    The critic must share no weights with the policy, and a response's returns must not depend on other responses.
    """
    return models.value_head is not None and not models.shared and algorithm.rowwise and ppo.loss != "trpo"


@torch.no_grad()
def read_values(
    models: ActorCritic,
    sequences: Sequences,
    plan: UpdatePlan,
    ppo: PPOSettings,
    returns_of: ReturnsOf | None = None,
    head_factors: Tensor | None = None,
    on_pass: Callable[[], None] = lambda: None,
) -> CriticValues:
    """The critic's passes over the update's first epoch.

    Args:
        models: With a critic.
        sequences: All rows of the batch.
        plan: Of the update.
        ppo: value_coef and clip_value are used.
        returns_of: The critic's targets of a micro-batch, to take the first minibatch's gradient; None: do not.
        head_factors: What each token counts for each value head [R, K]; None: 1.
        on_pass: Called after each micro-batch.
    """
    found, minibatches = no_values(models, len(sequences), len(plan.action_mask)), plan.epoch(0)

    def passes() -> PendingGradient | None:
        pending, remaining = None, minibatches
        if returns_of is not None:
            pending = _read_and_learn(
                models, sequences, minibatches[0], ppo, returns_of, head_factors, found, on_pass
            )
            remaining = minibatches[1:]
        for micro in (micro for minibatch in remaining for micro in minibatch.micro_batches):
            part = sequences.select(micro.rows).to(models.policy.device)
            fill_values(found, models, micro, *models.critic_states(part))
            on_pass()
        return pending

    pending = failing_together(plan.ranks, passes)
    return found.over(plan.ranks)._replace(first_gradient=pending)


def _read_and_learn(
    models: ActorCritic,
    sequences: Sequences,
    minibatch: Minibatch,
    ppo: PPOSettings,
    returns_of: ReturnsOf,
    head_factors: Tensor | None,
    found: CriticValues,
    on_pass: Callable[[], None],
) -> PendingGradient:
    """Fill in the values of the first minibatch, and return the gradient of its value loss."""
    loss = 0.0
    with _gradients_apart(models.critic_parameters()) as gradients:
        for micro in minibatch.micro_batches:
            part = sequences.select(micro.rows).to(models.policy.device)
            with torch.enable_grad():
                states, final_states = models.critic_states(part)
            fill_values(found, models, micro, states, final_states)
            at = micro.tokens
            values = found.values[at]
            old = values if found.of_heads is None else found.of_heads[at]
            factors = None if head_factors is None else head_factors[at]
            returns = returns_of(micro, values, found.final_values[micro.rows])
            with torch.enable_grad():
                share = value_loss(models, states, old, returns, micro.weights, ppo.clip_value, factors)
                (ppo.value_coef * share).backward()
            loss += float(share.detach())
            on_pass()
    return PendingGradient(loss, gradients)


@contextmanager
def _gradients_apart(parameters: Named) -> Iterator[dict[str, Tensor]]:
    """Gradients of the parameters go to the dictionary, from 0; their `.grad` is afterwards what it was before."""
    before = [p.grad for _, p in parameters]
    gradients = dict[str, Tensor]()
    for _, p in parameters:
        p.grad = torch.zeros_like(p)
    try:
        yield gradients
        gradients |= {name: p.grad for name, p in parameters if p.grad is not None}
    finally:
        for (_, p), gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def value_loss(
    models: ActorCritic,
    states: Tensor,
    old: Tensor,
    returns: Tensor,
    weights: Tensor,
    clip: float,
    head_factors: Tensor | None = None,
) -> Tensor:
    """Σ weight · loss of the values of states: their clipped squared error, or a histogram's cross-entropy.

    Args:
        models: With a critic.
        states: [r, H], with graph.
        old: Values before the update [r]; of several heads, each one's [r, K].
        returns: What the critic is to predict [r].
        weights: Of the tokens in the minibatch's loss [r].
        clip: How far a value may move before its loss is clipped; 0: no clip.
        head_factors: What each token counts for each of several heads [r, K]; None: 1.
    """
    old, returns, weights = (x.to(states.device) for x in (old, returns, weights))
    factors = None if head_factors is None else head_factors.to(states.device)
    assert models.value_head is not None
    losses = models.value_head.losses(states, old.view(len(old), -1), returns, clip)
    return ensemble_loss(losses, weights, factors)
