"""The policy that sampled, as the trainer's passes see it: what parts the engine's mismatch from staleness."""

from __future__ import annotations

import torch
from torch import Tensor

from proxlm.models.forward import micro_batches, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.rl.ragged import ragged_index
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.types import Sequences


@torch.no_grad()
def trainer_logprobs(
    sequences: Sequences,
    sampling_mask: SamplingMask | None,
    model: LanguageModel,
    temperature: float,
    micro_batch_tokens: int,
) -> Tensor:
    """The log-probs that the trainer's passes give response tokens, before the policy learns on, [R] float32.

    Args:
        sequences: Prompts and responses.
        sampling_mask: The sets that the tokens were sampled from; None: all tokens.
        model: With the weights that sampled them.
        temperature: Of the sampling.
        micro_batch_tokens: The most tokens in a pass.
    """
    offsets = sequences.response_offsets
    found = torch.zeros(int(offsets[-1]))
    for rows in micro_batches(sequences.lengths, micro_batch_tokens):
        at = ragged_index(offsets, rows)
        mask = None if sampling_mask is None else sampling_mask.select(at)
        part = sequences.select(rows).to(model.device)
        found[at] = token_outputs(model, part, temperature, mask=mask).logprobs.cpu()
    return found
