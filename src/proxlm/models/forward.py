"""The one place that turns a ragged batch into states, and states into per-token numbers.

Unpadded: `kernels/unpadded_forward.py` runs the real tokens of the model types it knows, and no others. All other
models run transformers' own forward, in one of two forms:
Padded: rows are padded on the right and no mask is passed. In a causal model no token looks to its right, so padding
cannot reach a real token, positions count from 0 in every row, and attention keeps its fastest path.
Packed: all rows in one, positions starting from 0 in each; transformers keeps attention within a row where positions
start from 0 again and there is no cache. `check_packing` tries that for a model before it is used.

An encoder–decoder's prompts and responses are padded separately. An encoder looks both ways, so its mask says what is
padding; the decoder is causal and needs none of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxlm.errors import ModelError
from proxlm.kernels.head_gradient import backward_through_head
from proxlm.kernels.linear_head import backward_through_linear_head, linear_head_logprobs
from proxlm.kernels.unpadded_forward import can_run_unpadded, states_behind, unpadded_states
from proxlm.models.context import context_of
from proxlm.models.encoder_decoder import config_of, source_and_target
from proxlm.models.frozen import shares_frozen_blocks
from proxlm.models.language_model import LanguageModel
from proxlm.rl.logprobs import chunked_logprobs, predicting_states
from proxlm.rl.sampling_mask import SamplingMask
from proxlm.types import Sequences

# Logits held at once: 2**23 float32 numbers, 32 MiB: smaller spans do not fill the processor, larger ones its cache.
LOGIT_BUDGET = 2**23
GPU_TIMES = (
    8  # a GPU has more units to fill and more memory: 441 tokens of a vocabulary of 152,000 (not measured)
)


class TokenOutputs(NamedTuple):
    """logprobs [R], entropy [R] or None, the states that predicted the tokens [R, H], and those at the end [B, H]."""

    logprobs: Tensor
    entropy: Tensor | None
    states: Tensor
    final_states: Tensor


def pad_right(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Ragged → padded [B, T] (filled with token 0) and where each token went in the flattened [B · T], [N]."""
    longest = int(sequences.lengths.max())
    row, position = sequences.row_and_position
    place = row * longest + position
    padded = torch.zeros(len(sequences) * longest, dtype=torch.int64, device=place.device)
    padded[place] = sequences.tokens
    return padded.view(len(sequences), longest), place


def pad_with_mask(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Ragged → padded [B, T] and the mask that is 1 on real tokens, [B, T] int64."""
    padded, place = pad_right(sequences)
    mask = torch.zeros_like(padded)
    mask.view(-1)[place] = 1
    return padded, mask


def response_states(
    model: LanguageModel, sequences: Sequences, trunk: Any = None, twice: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the trunk on a ragged batch.

    Args:
        model: The model, whose settings say how rows are laid out.
        sequences: On the model's device.
        trunk: Instead of the model's own (a separate critic's).
        twice: The states will be differentiated twice, which only transformers' own forward can be.

    Returns:
        The states that predict each response token [R, H], and the state after each row's last token [B, H].
    """
    network: Any = trunk or model.trunk
    _check_context(model, sequences, trunk)
    predicting, final = predicting_states(sequences.response_index), sequences.offsets[1:] - 1
    if runs_unpadded(model, network) and not twice:
        index = torch.cat([predicting, final])
        with model.autocast():
            states = unpadded_states(
                network,
                sequences,
                index,
                model.activation_checkpointing,
                _known_blocks(model, network, sequences),
            )
        return states[: len(predicting)], states[len(predicting) :]
    if model.encoder_decoder:
        source, sequences = source_and_target(sequences, model.start_id)
        encoder_ids, mask = pad_with_mask(source)
        padded, place = pad_right(sequences)
        inputs = {"input_ids": encoder_ids, "attention_mask": mask, "decoder_input_ids": padded}
    elif model.packed:
        positions = sequences.row_and_position[1]
        place = torch.arange(len(positions), device=positions.device)
        inputs = {"input_ids": sequences.tokens[None], "position_ids": positions[None]}
    else:
        padded, place = pad_right(sequences)
        inputs = {"input_ids": padded}
    with model.autocast():
        output = network(**inputs, use_cache=False)
    hidden = output.last_hidden_state.flatten(0, 1)
    if model.encoder_decoder:
        predicting, final = predicting_states(sequences.response_index), sequences.offsets[1:] - 1
    return hidden[place[predicting]], hidden[place[final]]


def _known_blocks(model: LanguageModel, trunk: Any, sequences: Sequences) -> int:
    """How many blocks of this trunk need not run, because the states behind them are known."""
    known = sequences.frozen_states is not None and shares_frozen_blocks(model, trunk)
    return model.frozen_blocks if known else 0


def frozen_states(model: LanguageModel, sequences: Sequences) -> Tensor:
    """The states of all tokens behind the model's frozen blocks, [N, H], as `Sequences.frozen_states` keeps them.

    Args:
        model: With frozen blocks, of which `runs_unpadded` is true.
        sequences: On the model's device.
    """
    _check_context(model, sequences)
    with model.autocast():
        return states_behind(model.trunk, sequences, model.frozen_blocks).to(model.states_dtype)


def _check_context(model: LanguageModel, sequences: Sequences, trunk: Any = None) -> None:
    """Raise ModelError for a row beyond the model's context, where positions wrap, clamp or were never trained.

    trunk: of a critic, whose context may be shorter.
    """
    if model.encoder_decoder:  # a response begins with the start token
        longest = torch.maximum(sequences.prompt_lengths, sequences.response_lengths + 1).max()
    else:
        longest = sequences.lengths.max()
    model.check_length(int(longest))
    if trunk is not None:
        limit = context_of(config_of(trunk)).limit
        if limit is not None and int(longest) > limit:
            raise ModelError(
                f"the critic: a text of {int(longest)} tokens does not fit its context of {limit}; lower"
                " rollout.max_new_tokens or data.max_prompt_tokens, or give another model.critic_from"
            )


def runs_unpadded(model: LanguageModel, trunk: Any) -> bool:
    """Whether this trunk's training pass is that of `kernels/unpadded_forward.py`."""
    return not (model.encoder_decoder or model.packed) and model.own_kernels and can_run_unpadded(trunk)


@torch.no_grad()
def check_packing(model: LanguageModel) -> None:
    """Raise ModelError unless packed sequences have the log-probs they have alone."""
    if model.encoder_decoder:
        raise ModelError(
            f"{model.source}: an encoder looks both ways, so an encoder–decoder's sequences cannot share a row; set"
            " model.packed = false"
        )
    size = model.network.get_input_embeddings().weight.shape[0]
    rows = [[(7 * i + 3 * k) % size for k in range(length)] for i, length in enumerate((5, 9, 3))]
    batch = Sequences.from_lists([row[:1] for row in rows], [row[1:] for row in rows]).to(model.device)
    try:
        together = token_outputs(replace(model, packed=True), batch).logprobs
    except TypeError as error:
        raise ModelError(f"{model.source}: takes no position_ids; set model.packed = false") from error
    alone = token_outputs(replace(model, packed=False), batch).logprobs
    worst = float((together - alone).abs().max())
    if not worst <= (0.1 if model.bfloat16 else 1e-3):
        raise ModelError(
            f"{model.source}: in packed sequences its log-probs differ by {worst:.3g}, so it looks from one sequence"
            " into another; set model.packed = false"
        )


def token_outputs(
    model: LanguageModel,
    sequences: Sequences,
    temperature: float = 1.0,
    entropy: bool = False,
    mask: SamplingMask | None = None,
) -> TokenOutputs:
    """Log-prob (and entropy) of every response token in the given texts, float32.

    Args:
        model: The model.
        sequences: On the model's device.
        temperature: Divides the logits; > 0.
        entropy: Whether entropies are computed.
        mask: The sets that the tokens were sampled from, over which the policy is renormalised; None: all tokens.
    """
    states, final_states = response_states(model, sequences)
    logprobs, entropies = head_logprobs(model, states, sequences.response_tokens, temperature, entropy, mask)
    return TokenOutputs(logprobs, entropies, states, final_states)


def head_logprobs(
    model: LanguageModel,
    states: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    mask: SamplingMask | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [R] and, if asked, entropies [R] of the tokens [R] that the states [R, H] predict.

    mask: the sets that the tokens were sampled from, over which the policy is renormalised; None: all tokens.
    """
    weight, chunk, mask = model.head_weight, logit_chunk(model, entropy), _fitting(mask, model, states)
    if weight is None:
        return chunked_logprobs(states, model.logits, tokens, temperature, entropy, chunk, mask)
    low = torch.bfloat16 if model.bfloat16 else None
    return linear_head_logprobs(
        states.to(weight.dtype), weight, tokens, temperature, entropy, chunk, mask, low
    )


def head_backward(
    model: LanguageModel,
    states: Tensor,
    tokens: Tensor,
    temperature: float,
    entropy: bool,
    loss: Callable[[slice, Tensor, Tensor | None], Tensor],
    mask: SamplingMask | None = None,
) -> Tensor:
    """The gradient of a token-wise loss of `head_logprobs` at the states, [R, H]; see `backward_through_head`."""
    weight, chunk, mask = model.head_weight, logit_chunk(model, entropy), _fitting(mask, model, states)
    if weight is None:
        return backward_through_head(states, model.logits, tokens, temperature, entropy, chunk, loss, mask)
    low = torch.bfloat16 if model.bfloat16 else None
    gradient = backward_through_linear_head(
        states.to(weight.dtype), weight, tokens, temperature, entropy, chunk, loss, mask, low
    )
    return gradient.to(states.dtype)


def _fitting(mask: SamplingMask | None, model: LanguageModel, states: Tensor) -> SamplingMask | None:
    """The mask, on the states' device. Raises ValueError if it is of another vocabulary."""
    if mask is None:
        return None
    size = len(model.network.get_output_embeddings().weight)
    if mask.vocabulary != size:
        raise ValueError(
            f"sampling mask of {mask.vocabulary} tokens, but {model.source} has {size}: not this model's rollout"
        )
    return mask.to(states.device)


def logit_chunk(model: LanguageModel, entropy: bool) -> int:
    """How many tokens' logits are held at once; for the entropy, log-probs beside them."""
    weight = model.network.get_output_embeddings().weight
    budget = LOGIT_BUDGET * (GPU_TIMES if weight.device.type == "cuda" else 1)
    return max(1, budget // (len(weight) * (2 if entropy else 1)))


def micro_batches(lengths: Tensor, budget: int) -> list[Tensor]:
    """Split rows into groups of similar length whose padded size (rows × longest) stays within `budget` tokens.

    There are as few groups as that allows, and they are as even as possible, for the largest decides the peak memory.
    A row longer than the budget is a group by itself. An encoder–decoder pads prompts and responses separately, which
    can come to twice the budget.

    Args:
        lengths: Tokens of each row [B].
        budget: Padded tokens of a group.

    Returns:
        Row indices of each group; every row is in one of them.
    """
    order = torch.argsort(lengths, stable=True)
    of_order = lengths[order].tolist()
    ends = _group_ends(of_order, budget)
    low, high = 1, budget  # find the smallest budget with as few groups
    while low < high:
        middle = (low + high) // 2
        fewer = _group_ends(of_order, middle)
        low, high, ends = (low, middle, fewer) if len(fewer) <= len(ends) else (middle + 1, high, ends)
    return list(torch.tensor_split(order, ends[:-1])) if ends else []


def _group_ends(lengths: list[int], budget: int) -> list[int]:
    """Where each group of ascending lengths ends, when each takes as many as the budget allows."""
    ends, first = list[int](), 0
    for i, length in enumerate(lengths):
        if i > first and (i + 1 - first) * length > budget:
            ends.append(i)
            first = i
    return [*ends, len(lengths)] if lengths else []
