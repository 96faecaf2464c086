"""Which responses each of a critic's heads learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.models.actor_critic import ActorCritic
from proxlm.rl.ragged import row_of_element
from proxlm.rl.value_ensemble import bootstrap_factors
from proxlm.seeds import Purpose
from proxlm.train.ppo.row_generators import row_generators
from proxlm.types import Rollout


def factors_of_heads(
    models: ActorCritic, rollout: Rollout, share: float, seed: int, step: int
) -> Tensor | None:
    """What each token counts in the loss of each value head [R, K]; None: 1 for all.

    A response has the same heads in every epoch, micro-batch and rank, and on a resume.

    Args:
        models: With or without a critic.
        rollout: The responses.
        share: Of the responses that a head learns from, above 0 and at most 1.
        seed: Of the run.
        step: The PPO step, from 0.
    """
    heads = 1 if models.value_head is None else models.value_head.ensemble.heads
    if heads == 1 or share == 1:
        return None
    generators = row_generators(rollout, seed, Purpose.HEADS, step)
    uniforms = torch.stack([torch.rand(heads, generator=own, dtype=torch.float64) for own in generators])
    return bootstrap_factors(uniforms, share)[row_of_element(rollout.sequences.response_offsets)]
