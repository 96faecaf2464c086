"""What supervised training minimises: the objective's interface, and the next-token loss of a language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from proxlm.config import LossSettings
from proxlm.distributed.ranks import ONE_PROCESS, Ranks
from proxlm.errors import RunError
from proxlm.models.classifier import Classifier
from proxlm.models.forward import logit_chunk, response_states, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.rl.ragged import ragged_index
from proxlm.rl.token_losses import focal_loss, smoothed_losses
from proxlm.runlog.folder import JsonRow
from proxlm.runlog.metric_names import VALIDATION_LOSS, VALIDATION_SOURCE
from proxlm.train.common.memory import failing_together
from proxlm.train.common.passes import passes
from proxlm.train.supervised.continuations import continuations
from proxlm.train.supervised.dropout import NO_DROPOUT, Dropout
from proxlm.train.supervised.examples import Examples
from proxlm.types import Sequences


class Objective(Protocol):
    """A model, its training and validation data, and the loss between them.

    The trainer draws batches of rows, steps the optimiser, validates, stops early and writes checkpoints. A new
    objective (preferences, regression, distillation) supplies what follows; rows are numbered from 0.

    Attributes:
        model: What learns; of an ensemble the first one.
        lengths: Tokens of each training row that a pass reads, [n]; batches are dealt by them.
        validation_lengths: The same of the validation rows.
    """

    @property
    def model(self) -> LanguageModel | Classifier: ...

    @property
    def lengths(self) -> Tensor: ...

    @property
    def validation_lengths(self) -> Tensor: ...

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        """The named parameters that learn."""

    def begin_step(self, step: int) -> None:
        """The step, from 0, whose batch comes next: what is random in a gradient depends on it."""

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        """Add the gradient of the rows' mean loss to the parameters' `.grad`, in passes of limited size.

        It must not depend on how the rows are split into passes, and may be called again for the same rows. Each of
        several ranks makes its passes (`train/common/passes.py`) and communicates nothing: gradient and loss of the
        rows are the sums over ranks.

        Returns:
            This rank's summand of the loss, and the number of tokens in the rows.
        """

    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        """Metrics on the validation rows, the same on all ranks, which share the passes. The weights with the lowest
        "validation_loss" are kept.
        """

    def samples(self, count: int) -> list[JsonRow]:
        """What the model makes of the first `count` validation rows, as rows of samples.jsonl.

        Each has a "prompt" and a "response"; "expected", "reward" and "components" are shown, too. No random number
        may be drawn.
        """

    def save(self, folder: Path) -> None:
        """Write the model, in the form in which it is used after the run."""

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        """The training rows in readable form, for the user who must find out what is wrong with them."""


def rows_sha256(objective: Objective) -> str:
    """Of the lengths of all rows, and of a few training rows as they are described."""
    found = hashlib.sha256()
    for lengths in (objective.lengths, objective.validation_lengths):
        found.update(lengths.contiguous().numpy().tobytes())
    some = range(0, len(objective.lengths), max(1, len(objective.lengths) // 16))
    found.update(json.dumps(objective.describe(some), default=str).encode())
    return found.hexdigest()


def check_same_rows(found: Sequence[str]) -> None:
    """Raise RunError if a rank's rows, by their `rows_sha256`, are not those of rank 0."""
    other = [rank for rank, sha256 in enumerate(found) if sha256 != found[0]]
    if other:
        raise RunError(
            f"rank {other[0]} has read other rows than rank 0: each rank reads the files itself, so that they must be"
            " the same on all machines"
        )


class LanguageModelObjective:
    """The mean loss of the counted tokens, in nats per token: their negative log-likelihood, or what [loss] says.

    The validation loss is the negative log-likelihood in any case, so that runs with different losses compare.
    """

    def __init__(
        self,
        model: LanguageModel,
        training: Examples,
        validation: Examples,
        loss: LossSettings | None = None,
        validation_sources: Sequence[str] = (),
        dropout: Dropout = NO_DROPOUT,
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.loss, self.dropout = loss or LossSettings(), dropout
        self.validation_sources = validation_sources

    @property
    def lengths(self) -> Tensor:
        return self.training.lengths

    @property
    def validation_lengths(self) -> Tensor:
        return self.validation.lengths

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self.model.trainable()

    def begin_step(self, step: int) -> None:
        self.dropout.begin_step(step)

    def gradient(
        self, rows: Sequence[int], micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS
    ) -> tuple[float, int]:
        return next_token_gradient(
            self.model,
            self.training,
            rows,
            micro_batch_tokens,
            loss=self.loss,
            dropout=self.dropout,
            ranks=ranks,
        )

    def validate(self, micro_batch_tokens: int, ranks: Ranks = ONE_PROCESS) -> dict[str, float]:
        loss, of_sources = next_token_losses(
            self.model, self.validation, micro_batch_tokens, len(self.validation_sources), ranks
        )
        named = zip(self.validation_sources, of_sources, strict=True)
        return {
            VALIDATION_LOSS: loss,
            **{VALIDATION_SOURCE(name): found for name, found in named if found == found},
        }

    def samples(self, count: int) -> list[JsonRow]:
        return continuations(self.model, self.validation, count)

    def save(self, folder: Path) -> None:
        save_language_model(self.model, folder)

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        decode, found = self.model.tokenizer.decode, list[JsonRow]()
        for row in rows:
            sequence, _ = self.training.batch([row])
            prompt, response = sequence.tokens.tensor_split(sequence.prompt_lengths.cpu())
            found.append({"row": row, "prompt": decode(prompt), "response": decode(response)})
        return found


def next_token_gradient(
    model: LanguageModel,
    examples: Examples,
    rows: Sequence[int],
    micro_batch_tokens: int,
    factor: float = 1.0,
    loss: LossSettings | None = None,
    dropout: Dropout = NO_DROPOUT,
    ranks: Ranks = ONE_PROCESS,
) -> tuple[float, int]:
    """Add `factor` times the gradient of the rows' mean next-token loss to the parameters' `.grad`.

    Args:
        model: The model.
        examples: All texts.
        rows: Those that are read.
        micro_batch_tokens: Most tokens in a pass.
        factor: Of the gradient.
        loss: Of each token; None: cross-entropy.
        dropout: In the passes.
        ranks: Each makes its passes.

    Returns:
        This rank's summand of the loss in nats per counted token, and the number of tokens in the rows.
    """
    sequences, mask = examples.batch(rows)
    total = max(1, int(mask.sum()))
    mean, numbers = 0.0, torch.tensor(rows)
    offsets = sequences.response_offsets
    for micro, weight in passes(sequences.lengths, micro_batch_tokens, ranks):
        part = sequences.select(micro).to(model.device)
        weights = weight * mask[ragged_index(offsets, micro)].to(model.device) / total
        with dropout.on(numbers[micro], part.lengths if model.packed else None):
            share = (weights * token_losses(model, part, loss or LossSettings())).sum()
        torch.mul(share, factor).backward()
        mean += float(share.detach())
    return mean, len(sequences.tokens)


def token_losses(model: LanguageModel, sequences: Sequences, loss: LossSettings) -> Tensor:
    """The loss of each response token, [R], in nats; logits exist for a chunk of them at a time."""
    if loss.kind == "label-smoothing":
        states, _ = response_states(model, sequences)
        chunk = logit_chunk(model, entropy=True)  # the logits and their log-probs
        return smoothed_losses(states, model.logits, sequences.response_tokens, loss.smoothing, chunk)
    logprobs = token_outputs(model, sequences).logprobs
    return focal_loss(logprobs, loss.gamma) if loss.kind == "focal" else -logprobs


@torch.no_grad()
def next_token_losses(
    model: LanguageModel,
    examples: Examples,
    micro_batch_tokens: int,
    sources: int = 0,
    ranks: Ranks = ONE_PROCESS,
) -> tuple[float, list[float]]:
    """Mean negative log-likelihood per counted token, in nats: of all examples, and of each source's.

    sources: how many sources `examples.sources` numbers; of one without a counted token it is NaN; ranks: they share
    the passes.
    """

    def own_sums() -> Tensor:
        """Losses and counted tokens of all examples and of each source, [2, 1 + sources]."""
        sums = torch.zeros(2, 1 + sources, dtype=torch.float64)
        for rows, weight in passes(examples.lengths, micro_batch_tokens, ranks):
            sequences, mask = examples.batch(rows.tolist())
            logprobs = token_outputs(model, sequences.to(model.device)).logprobs.cpu()
            if not weight:
                continue
            sums[0, 0] -= logprobs[mask].double().sum()
            sums[1, 0] += mask.sum()
            if examples.sources is not None and sources:
                of_token = examples.sources[rows].repeat_interleave(sequences.response_lengths.cpu())[mask]
                sums[0, 1:].index_add_(0, of_token, -logprobs[mask].double())
                sums[1, 1:] += of_token.bincount(minlength=sources)
        return sums

    losses, counts = ranks.sum(failing_together(ranks, own_sums))
    return float(losses[0] / counts[0].clamp(min=1)), (losses[1:] / counts[1:]).tolist()
