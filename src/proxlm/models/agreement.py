"""Whether the pass that trains a model computes what the model's own forward does, tried on a few random tokens.

Rows of different lengths in one batch against each row alone, as transformers runs it; and a changed token against
all that stands before it. A model that looks both ways, that lets padding reach a real token, or that changes its
logits in a way proxlm does not know, would train in silence on other numbers than it generates with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from proxlm.errors import ModelError, UserError
from proxlm.models.context import context_of
from proxlm.models.encoder_decoder import config_of
from proxlm.models.few_blocks import holds
from proxlm.models.forward import response_states, runs_unpadded, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.text import reason_of
from proxlm.types import Sequences

# Prompt and response of each row. The second row is the first one with its last CHANGED tokens changed.
ROWS = ((9, 3), (9, 3), (1, 1), (4, 2))
CHANGED = 2


@torch.no_grad()
def check_forward(model: LanguageModel) -> None:
    """Compare the training pass with transformers' own forward.

    Raises:
        ModelError: They differ, the model is not causal, its numbers are not finite, or it cannot be run.
    """
    with model_runs(model):
        check_weights(model)
        holds(model.network, lambda: _compare(exact(model)))
    model.agrees = "training"


def check_gradients(model: LanguageModel) -> None:
    """Run the training pass once, back to its first weight; some types refuse that in evaluation mode (Reformer).

    Raises:
        ModelError: It cannot be run.
    """
    if not runs_unpadded(model, model.trunk):
        first = model.trainable()[0][1]  # the lowest, so that the pass goes back through all above it
        with model_runs(model), torch.enable_grad():
            loss = token_outputs(model, trial_rows(model)).logprobs.sum()
            torch.autograd.grad(loss, first, allow_unused=True)


def _compare(model: LanguageModel) -> bool:
    """True; or the error that says what differs."""
    trial = trial_rows(model)
    own = [_own_logits(model, trial, rows) for rows in ((0, 1), (2,), (3,))]
    own_rows = [own[0][0], own[0][1], own[1][0], own[2][0]]
    check_finite(model, torch.cat(own_rows))
    most = tolerance(model, own_rows)
    # The state before the first changed token is the last one that may not change.
    unchanged = len(own_rows[0]) - CHANGED + (1 if model.encoder_decoder else 0)
    first, second = (row[:unchanged] for row in own_rows[:2])
    if not (worst := gap(first, second)) <= most:
        raise ModelError(
            f"{model.source}: model type {_type(model)} is not causal: another token at the end of a text changes"
            f" the logits before it by {worst:.3g}; use a model that looks to the left only (is_decoder = true or"
            " use_bidirectional_attention = false in config.json, where the type has them)"
        )
    wanted, outputs = _predicting(model, own_rows, trial).log_softmax(-1), token_outputs(model, trial)
    found = model.logits(outputs.states).float().log_softmax(-1)
    chosen = wanted.gather(-1, trial.response_tokens[:, None])[:, 0]
    if not (worst := max(gap(wanted, found), gap(chosen, outputs.logprobs))) <= most:
        raise ModelError(
            f"{model.source}: log-probs of model type {_type(model)} differ by {worst:.3g} between the training"
            " pass (rows of different lengths, its head after its trunk) and transformers' own forward of each row"
            " alone, in a way proxlm does not know; use another model type"
        )
    return True


@torch.no_grad()
def check_trunk(model: LanguageModel, trunk: Any, what: str) -> None:
    """Compare the states of another trunk, a critic's, in the model's training pass with those of each row alone.

    Args:
        model: How rows are laid out, and the tokens.
        trunk: Without a head; of an encoder–decoder both halves.
        what: Beginning of an error's message.

    Raises:
        ModelError: They differ, as where the trunk looks both ways or at padding, or it cannot be run.
    """
    trial = trial_rows(model, context_of(config_of(trunk)).limit)
    try:
        _, together = response_states(model, trial, trunk)
        rows = [trial.select(torch.tensor([row], device=model.device)) for row in range(len(trial))]
        alone = torch.cat([_last_state(model, row, trunk) for row in rows])
    except UserError:
        raise
    except Exception as error:
        raise ModelError(
            f"{what}: cannot be run on token ids alone: {type(error).__name__}: {reason_of(error, 120)}"
        ) from error
    if not (worst := gap(together.float(), alone.float())) <= tolerance(model, [alone.float()]):
        raise ModelError(
            f"{what}: its states differ by {worst:.3g} between the training pass and each text alone; use a model"
            " that looks to the left only"
        )


def _last_state(model: LanguageModel, row: Sequences, trunk: Any) -> Tensor:
    """The state [1, H] after one row's last token, by the trunk's own forward on that row and no other."""
    if model.encoder_decoder:
        return response_states(model, row, trunk)[1]
    with model.autocast():
        return trunk(input_ids=row.tokens[None], use_cache=False).last_hidden_state[:, -1]


def trial_rows(model: LanguageModel, longest: int | None = None) -> Sequences:
    """A few random rows of different lengths for a model, on its device; the same ones each time.

    longest: the context of a critic, if that is shorter than the model's.
    """
    size = model.network.get_input_embeddings().weight.shape[0]
    text = model.network.config.get_text_config()
    size = min(size, getattr(text, "vocab_size", None) or size)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(size, (sum(lengths),), generator=generator) for lengths in ROWS]
    padding = getattr(text, "pad_token_id", None)
    rows = [
        torch.where(row == padding, (row + 1) % size, row) if padding is not None else row for row in rows
    ]
    rows[1] = rows[0].clone()
    rows[1][-CHANGED:] = rows[3][:CHANGED]
    limit = min(model.context or 2**31, longest or 2**31)
    prompts = [
        row[:prompt][: max(1, limit - response)] for row, (prompt, response) in zip(rows, ROWS, strict=True)
    ]
    responses = [row[prompt:] for row, (prompt, _) in zip(rows, ROWS, strict=True)]
    return Sequences.from_lists([p.tolist() for p in prompts], [r.tolist() for r in responses]).to(
        model.device
    )


def exact(model: LanguageModel) -> LanguageModel:
    """The model without bfloat16 and packing, whose rounding would hide what differs."""
    attention = getattr(model.network.config, "_attn_implementation", None) or ""
    # Flash attention has no float32.
    return replace(model, bfloat16=model.bfloat16 and "flash" in attention, packed=False)


def tolerance(model: LanguageModel, logits: list[Tensor]) -> float:
    """How much two ways to compute log-probs from such logits may differ by rounding."""
    half = model.bfloat16 or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in model.network.parameters()
    )
    largest = max(float(row.masked_fill(row.isinf(), 0).abs().max()) for row in logits)
    return max(0.1, 0.02 * largest) if half else max(1e-3, 1e-4 * largest)


def gap(first: Tensor, second: Tensor) -> float:
    """The largest difference; NaN if there is one, and 0 where both are the same infinity."""
    return float((first - second).abs().masked_fill(first == second, 0.0).max())


@contextmanager
def model_runs(model: LanguageModel) -> Iterator[None]:
    """An error inside becomes a ModelError that names the model type and says what the model said."""
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{model.source}: not enough memory on {model.device} to run it on {sum(map(sum, ROWS))} tokens; use a"
            " smaller model or another device"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{model.source}: model type {_type(model)} cannot be run as a language model on token ids alone:"
            f" {type(error).__name__}: {reason_of(error, 120)}; use another model type"
        ) from error


def check_weights(model: LanguageModel) -> None:
    """Raise ModelError for weights that are NaN or infinite; not every such weight makes logits that are.

    torch's fused attention, for one, may take a score that is NaN for a token that is not to be seen.
    """
    finite = [bool(p.sum(dtype=torch.float32).isfinite()) for p in model.network.parameters()]
    if not all(finite) and (wrong := _not_finite(model)):
        raise ModelError(f"{model.source}: {wrong}; take an earlier checkpoint")


def check_finite(model: LanguageModel, numbers: Tensor) -> None:
    """Raise ModelError if logits or log-probs are NaN or infinite (an impossible token's −inf may be)."""
    if not bool((numbers.isnan() | (numbers == torch.inf)).any()):
        return
    raise ModelError(f"{model.source}: its logits are not finite numbers: {why_not_finite(model)}")


def why_not_finite(model: LanguageModel) -> str:
    """Where NaN or infinite logits come from, as far as the weights show, and what to do."""
    if wrong := _not_finite(model):
        return f"{wrong}; take an earlier checkpoint"
    precision = ', set model.precision = "float32",' if model.bfloat16 else ""
    return f"its weights are finite, so they overflow on the way{precision} or take an earlier checkpoint"


def _not_finite(model: LanguageModel) -> str:
    """Which weights are not finite, in words; "" if all are."""
    wrong = [name for name, p in model.network.named_parameters() if not bool(p.isfinite().all())]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"NaN or infinity in the weights {wrong[0]}{more}" if wrong else ""


def _own_logits(model: LanguageModel, trial: Sequences, rows: tuple[int, ...]) -> Tensor:
    """The logits [b, t, V] of transformers' forward on rows of one length, without padding."""
    starts = trial.offsets.tolist()
    whole = torch.stack([trial.tokens[starts[row] : starts[row + 1]] for row in rows])
    network: Any = model.network
    if not model.encoder_decoder:
        with model.autocast():
            return network(input_ids=whole, use_cache=False).logits.float()
    prompt = int(trial.prompt_lengths[rows[0]])
    source, response = whole[:, :prompt], whole[:, prompt:]
    target = torch.cat([torch.full_like(response[:, :1], model.start_id), response[:, :-1]], dim=-1)
    with model.autocast():
        output = network(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            decoder_input_ids=target,
            use_cache=False,
        )
    return output.logits.float()


def _predicting(model: LanguageModel, logits: list[Tensor], trial: Sequences) -> Tensor:
    """Of each row's logits [t, V], those that predict its response; together [R, V]."""
    starts = [0] * len(trial) if model.encoder_decoder else (trial.prompt_lengths - 1).tolist()
    counts = trial.response_lengths.tolist()
    parts = zip(logits, starts, counts, strict=True)
    return torch.cat([row[start : start + count] for row, start, count in parts])


def _type(model: LanguageModel) -> str:
    return str(model.network.config.model_type)
