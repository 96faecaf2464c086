"""An objective whose models' weights are spread over ranks."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from proxlm.distributed.ranks import Ranks
from proxlm.models.frozen_copy import frozen_copy
from proxlm.models.language_model import LanguageModel
from proxlm.models.sharded import shard_network
from proxlm.rewards.reward_model import MEMBER
from proxlm.train.supervised.ensemble_objective import EnsembleObjective


def shard_objective(objective: Any, ranks: Ranks) -> Any:
    """Spread the blocks of an objective's model, or of the members of its ensemble, over all ranks.

    Returns:
        On rank 0 the objective with whole copies, which are saved and make samples; else itself.
    """
    whole, models = objective, _models(objective)
    if ranks.rank == 0:
        whole, copies = copy.copy(objective), [frozen_copy(model) for model in models]
        whole.model = copies[0]
        if isinstance(whole, EnsembleObjective):
            whole.members = copies
    for model in models:
        checkpointing = isinstance(model, LanguageModel) and model.activation_checkpointing
        shard_network(model.network, model.device, ranks.size, model.bfloat16, checkpointing)
    return whole


def named_weights(objective: Any) -> dict[str, Tensor]:
    """All weights of an objective's models, those that learn by their names in `trainable`."""
    if not isinstance(objective, EnsembleObjective):
        return dict(objective.model.network.named_parameters())
    members = enumerate(objective.members, 1)
    return {f"{MEMBER}{i}.{name}": p for i, one in members for name, p in one.network.named_parameters()}


def _models(objective: Any) -> list[Any]:
    return list(objective.members) if isinstance(objective, EnsembleObjective) else [objective.model]
