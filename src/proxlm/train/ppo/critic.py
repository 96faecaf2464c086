"""The critic's part of an update: its loss, and how its first gradient is taken on the pass that reads its values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.config import PPOSettings
from proxlm.kernels.gradients import gradients_in_place
from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.losses import clipped_value_loss
from proxlm.types import Sequences


def value_loss(
    models: ActorCritic, states: Tensor, old: Tensor, returns: Tensor, weights: Tensor, clip: float
) -> Tensor:
    """Σ weight · clipped squared error of the values of states [R, H]; old values, returns and weights [R]."""
    old, returns, weights = (x.to(states.device) for x in (old, returns, weights))
    return (weights * clipped_value_loss(models.value_of(states), old, returns, clip)).sum()


@dataclass
class CriticsFirst:
    """The critic's gradient of an update's first minibatch.

    Before the first optimiser step its forward pass is the one that values are read on, so it is made once. For a
    critic that shares no weights with the policy, and advantages that need nothing of other rows.

    count: the micro-batches of that minibatch, which come first; weights [R]: of its tokens in the loss; loss: found.
    """

    count: int
    weights: Tensor
    config: PPOSettings
    loss: float = 0.0

    def states(self, models: ActorCritic, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """As `critic_states`, with what the way back needs."""
        with torch.enable_grad(), gradients_in_place():
            return models.critic_states(sequences)

    def learn(self, models: ActorCritic, states: Tensor, values: Tensor, returns: Tensor, at: Tensor) -> None:
        """Go back from the states of a micro-batch, whose tokens are at [r]; values and returns [r]."""
        with torch.enable_grad():
            loss = value_loss(models, states, values, returns, self.weights[at], self.config.clip_value)
            (self.config.value_coef * loss).backward()
        self.loss += float(loss.detach())
