"""The states behind blocks that never learn: known before an update's passes begin, which start there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from proxlm.models.actor_critic import ActorCritic
from proxlm.models.forward import frozen_states, runs_unpadded
from proxlm.rl.ragged import ragged_index
from proxlm.train.common.memory import failing_together
from proxlm.train.ppo.plan import UpdatePlan
from proxlm.types import Rollout


def with_frozen_states(models: ActorCritic, rollout: Rollout, plan: UpdatePlan) -> Rollout:
    """The rollout with the states behind the policy's frozen blocks, at which every pass starts.

    The engine has kept them while it wrote the responses, or they are computed here. Without frozen blocks, or where
    proxlm's own passes do not run, the rollout stays as it is.
    """
    model, sequences = models.policy, rollout.sequences
    if (
        not model.frozen_blocks
        or sequences.frozen_states is not None
        or not runs_unpadded(model, model.trunk)
    ):
        return rollout

    def states() -> Tensor:
        found = torch.zeros(len(sequences.tokens), model.hidden_size, dtype=model.states_dtype)
        for micro in (micro for minibatch in plan.epoch(0) for micro in minibatch.micro_batches):
            if not micro.padding:
                part = sequences.select(micro.rows).to(model.device)
                found[ragged_index(sequences.offsets, micro.rows)] = frozen_states(model, part).cpu()
        return found

    found = plan.within_memory(lambda: failing_together(plan.ranks, states))
    return replace(rollout, sequences=replace(sequences, frozen_states=plan.ranks.sum(found)))
