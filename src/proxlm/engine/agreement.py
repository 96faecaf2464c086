"""Whether what generates computes what trains, tried on a few random tokens.

The tokens of `models/agreement.py`, as the engine reads them: prompts of different lengths in one batch, one token a
step, rows that leave. Its log-probs must be those of the training pass, or the ratio of PPO's first update is not 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from proxlm.engine.forced import forced_logprobs
from proxlm.errors import ModelError
from proxlm.models.agreement import check_finite, check_forward, exact, gap, model_runs, tolerance, trial_rows
from proxlm.models.few_blocks import holds
from proxlm.models.forward import token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.types import Sequences

WITHOUT_CACHE = (
    "this model type's cache does not agree with its training pass: every token reads its whole text again"
)


@torch.no_grad()
def check_engine(model: LanguageModel) -> None:
    """Compare the engine's log-probs with the training pass's, and that with transformers'; once for a LanguageModel.

    A cache that fails is given up (`model.cached`).

    Raises:
        ModelError: They differ without a cache, too, or the model cannot be run.
    """
    if model.agrees == "engine":
        return
    if model.agrees == "unknown":
        check_forward(model)
    with model_runs(model):
        model.cached = holds(model.network, lambda: _agrees_with_a_cache(exact(model)))
    model.agrees = "engine"


def _agrees_with_a_cache(model: LanguageModel) -> bool:
    """Whether the engine agrees as it would run; False: only if every token reads its whole text again."""
    trial = trial_rows(model)
    outputs = token_outputs(model, trial)
    check_finite(model, outputs.logprobs)
    most = tolerance(model, [model.logits(outputs.states)])
    if model.cached and not _fails(model, outputs.logprobs, trial, most):
        return True
    found = _decoded(replace(model, cached=False), trial)
    check_finite(model, found)
    if not (worst := gap(found, outputs.logprobs)) <= most:
        raise ModelError(
            f"{model.source}: log-probs of model type {model.network.config.model_type} differ by {worst:.3g} between"
            " generating and training, in a way proxlm does not know; use another model type"
        )
    return False


def _fails(model: LanguageModel, wanted: Tensor, trial: Sequences, most: float) -> bool:
    try:
        return not gap(_decoded(model, trial), wanted) <= most
    except Exception:  # whatever a model does with a cache that is not made for it
        return True


def _decoded(model: LanguageModel, trial: Sequences) -> Tensor:
    """The log-probs [R] of the trial's responses, as the engine's decoder computes them token by token."""
    starts, prompts = trial.offsets.tolist(), trial.prompt_lengths.tolist()
    rows = [trial.tokens[starts[i] : starts[i + 1]].tolist() for i in range(len(trial))]
    pairs = zip(rows, prompts, strict=True)
    asked, answered = zip(*((row[:prompt], row[prompt:]) for row, prompt in pairs), strict=True)
    return torch.cat(forced_logprobs(model, asked, answered)).to(model.device)
