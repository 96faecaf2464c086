"""What supervised training minimises: the objective's interface, and the next-token loss of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from proxlm.config import LossSettings
from proxlm.models.forward import logit_chunk, micro_batches, response_states, token_outputs
from proxlm.models.language_model import LanguageModel
from proxlm.models.save import save_language_model
from proxlm.rl.ragged import ragged_index
from proxlm.rl.token_losses import focal_loss, smoothed_losses
from proxlm.runlog.folder import JsonRow
from proxlm.train.supervised.continuations import continuations
from proxlm.train.supervised.examples import Examples
from proxlm.types import Sequences


class Objective(Protocol):
    """A model, its training and validation data, and the loss between them.

    The trainer draws batches of rows, steps the optimiser, validates, stops early and writes checkpoints. A new
    objective (preferences, regression, distillation) supplies what follows; rows are numbered from 0.

    Attributes:
        lengths: Tokens of each training row that a pass reads, [n]; batches are dealt by them.
        validation_lengths: The same of the validation rows.
    """

    @property
    def lengths(self) -> Tensor: ...

    @property
    def validation_lengths(self) -> Tensor: ...

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        """The named parameters that learn."""

    def gradient(self, rows: Sequence[int], micro_batch_tokens: int) -> tuple[float, int]:
        """Add the gradient of the rows' mean loss to the parameters' `.grad`, in passes of limited size.

        It must not depend on how the rows are split into passes, and may be called again for the same rows.

        Returns:
            The loss, and the number of tokens read.
        """

    def validate(self, micro_batch_tokens: int) -> dict[str, float]:
        """Metrics on the validation rows. The weights with the lowest "validation_loss" are kept."""

    def samples(self, count: int) -> list[JsonRow]:
        """What the model makes of the first `count` validation rows, as rows of samples.jsonl.

        Each has a "prompt" and a "response"; "expected", "reward" and "components" are shown, too. No random number
        may be drawn.
        """

    def save(self, folder: Path) -> None:
        """Write the model, in the form in which it is used after the run."""

    def describe(self, rows: Sequence[int]) -> list[JsonRow]:
        """The training rows in readable form, for the user who must find out what is wrong with them."""


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
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.loss = loss or LossSettings()

    @property
    def lengths(self) -> Tensor:
        return self.training.lengths

    @property
    def validation_lengths(self) -> Tensor:
        return self.validation.lengths

    def trainable(self) -> Sequence[tuple[str, nn.Parameter]]:
        return self.model.trainable()

    def gradient(self, rows: Sequence[int], micro_batch_tokens: int) -> tuple[float, int]:
        return next_token_gradient(self.model, self.training, rows, micro_batch_tokens, loss=self.loss)

    def validate(self, micro_batch_tokens: int) -> dict[str, float]:
        return {"validation_loss": next_token_loss(self.model, self.validation, micro_batch_tokens)}

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
) -> tuple[float, int]:
    """Add `factor` times the gradient of the rows' mean next-token loss to the parameters' `.grad`.

    loss: of each token; None: cross-entropy.

    Returns:
        The loss in nats per counted token, and the number of tokens read.
    """
    sequences, mask = examples.batch(rows)
    total = max(1, int(mask.sum()))
    mean = 0.0
    offsets = sequences.response_offsets
    for micro in micro_batches(sequences.lengths, micro_batch_tokens):
        part = sequences.select(micro).to(model.device)
        weights = mask[ragged_index(offsets, micro)].to(model.device) / total
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
def next_token_loss(model: LanguageModel, examples: Examples, micro_batch_tokens: int) -> float:
    """Mean negative log-likelihood per counted token over all examples, in nats."""
    total, count = 0.0, 0
    for rows in micro_batches(examples.lengths, micro_batch_tokens):
        sequences, mask = examples.batch(rows.tolist())
        logprobs = token_outputs(model, sequences.to(model.device)).logprobs.cpu()
        total -= float(logprobs[mask].double().sum())
        count += int(mask.sum())
    return total / max(1, count)
