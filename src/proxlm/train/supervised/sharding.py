"""An objective whose model's weights are spread over ranks."""

from __future__ import annotations

import copy
from typing import Any

from proxlm.distributed.ranks import Ranks
from proxlm.models.frozen_copy import frozen_copy
from proxlm.models.language_model import LanguageModel
from proxlm.models.sharded import shard_network


def shard_objective(objective: Any, ranks: Ranks) -> Any:
    """Spread the blocks of an objective's one model, `objective.model`, over all ranks.

    Returns:
        On rank 0 the objective with a whole copy of the model, which is saved and makes samples; else itself.
    """
    whole, model = objective, objective.model
    if ranks.rank == 0:
        whole = copy.copy(objective)
        whole.model = frozen_copy(model)
    checkpointing = isinstance(model, LanguageModel) and model.activation_checkpointing
    shard_network(model.network, model.device, ranks.size, model.bfloat16, checkpointing)
    return whole
