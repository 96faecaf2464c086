"""The policy that sampled, as the trainer's passes see it: what parts the engine's mismatch from staleness."""

from __future__ import annotations

from dataclasses import replace

import torch

from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import ragged_index
from proxlm.types import Rollout


@torch.no_grad()
def with_trainer_logprobs(
    rollout: Rollout, model: LanguageModel, temperature: float, micro_batch_tokens: int
) -> Rollout:
    """The rollout with the log-probs that the trainer's passes give its tokens, before the policy learns on.

    Args:
        rollout: The responses.
        model: With the weights that sampled them.
        temperature: Of the sampling.
        micro_batch_tokens: The most tokens in a pass.
    """
    found, offsets = torch.zeros_like(rollout.logprobs), rollout.sequences.response_offsets
    for rows in micro_batches(rollout.sequences.lengths, micro_batch_tokens):
        at = ragged_index(offsets, rows)
        mask = None if rollout.sampling_mask is None else rollout.sampling_mask.select(at)
        part = rollout.sequences.select(rows).to(model.device)
        found[at] = token_outputs(model, part, temperature, mask=mask).logprobs.cpu()
    return replace(rollout, trainer_logprobs=found)
