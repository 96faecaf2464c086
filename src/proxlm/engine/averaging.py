"""Several models of one tokenizer as one engine: each token is sampled from the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from proxlm.config import RolloutSettings
from proxlm.engine.agreement import check_engine
from proxlm.engine.decoders import Decoder, make_decoder
from proxlm.engine.kv_cache import CachedPrefix
from proxlm.engine.native import NativeEngine
from proxlm.engine.request import Request
from proxlm.errors import ModelError
from proxlm.models.forward import logit_chunk, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.types import Sequences


def mean_log_probs(logits: Iterable[Tensor]) -> Tensor:
    """The logarithm of the models' mean probabilities: log (1/M) Σ_m softmax(logits_m), [b, V] float32."""
    logs = torch.stack([torch.log_softmax(one.float(), -1) for one in logits])
    return torch.logsumexp(logs, 0) - math.log(len(logs))


class AveragedDecoder:
    """A decoder of several models, each with a decoder of its own; a row's state is all of theirs, side by side.

    Its logits are the logarithms of mean probabilities, which temperature and filters then change like any others.
    """

    keeps_states = False

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self.decoders = decoders
        self._widths = list[int]()

    @property
    def can_join(self) -> bool:
        return all(decoder.can_join for decoder in self.decoders)

    def add(
        self, prompts: Sequence[Sequence[int]], room: int, prefixes: Sequence[CachedPrefix | None]
    ) -> Tensor:
        return self._joined([decoder.add(prompts, room, prefixes) for decoder in self.decoders])

    def step(self, tokens: Tensor) -> Tensor:
        return self._joined([decoder.step(tokens) for decoder in self.decoders])

    def keep(self, rows: Tensor) -> None:
        for decoder in self.decoders:
            decoder.keep(rows)

    def logits(self, states: Tensor) -> Tensor:
        parts = states.split(self._widths, dim=-1)
        return mean_log_probs(one.logits(part) for one, part in zip(self.decoders, parts, strict=True))

    def snapshot(self, row: int, length: int) -> CachedPrefix | None:  # noqa: ARG002
        """Nothing: every turn of a conversation is read from its beginning."""
        return None

    def frozen_states(self, row: int) -> Tensor | None:  # noqa: ARG002
        """Nothing."""
        return None

    def _joined(self, states: list[Tensor]) -> Tensor:
        self._widths = [part.shape[-1] for part in states]
        return torch.cat(states, -1)


class AveragingEngine(NativeEngine):
    """A native engine that samples from the mean of several models' probabilities; it does not learn.

    Args:
        models: Of one tokenizer, whose heads have as many rows; the first one's tokenizer ends the turns.
        settings: As of `NativeEngine`.

    Raises:
        ModelError: Their heads differ in size, or only some are encoder–decoders.
    """

    def __init__(self, models: Sequence[LanguageModel], settings: RolloutSettings) -> None:
        super().__init__(models[0], settings)
        self.models = list(models)
        check_heads(models)

    def submit(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        for other in self.models[1:]:
            self._check(other, requests)
        super().submit(requests)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:  # noqa: ARG002
        raise ModelError("an average of models takes no new weights; train each by itself")

    def _decoder(self, keep_states: bool) -> Decoder:  # noqa: ARG002
        for other in self.models[1:]:
            check_engine(other)
        settings = self._settings
        return AveragedDecoder(
            [make_decoder(model, settings.weights, False, settings.cuda_graphs) for model in self.models]
        )


def check_heads(models: Sequence[LanguageModel]) -> None:
    """Raise ModelError unless the models' probabilities are of the same tokens."""
    first = models[0]
    for other in models[1:]:
        rows = [len(model.network.get_output_embeddings().weight) for model in (first, other)]
        if rows[0] != rows[1] or first.encoder_decoder != other.encoder_decoder:
            raise ModelError(
                f"{other.source}: its head has {rows[1]} rows, that of {first.source} {rows[0]}: their probabilities"
                " have no mean"
                if rows[0] != rows[1]
                else f"{other.source}: it and {first.source} are not both encoder–decoders"
            )


@torch.no_grad()
def averaged_logprobs(models: Sequence[LanguageModel], sequences: Sequences, temperature: float) -> Tensor:
    """Log-probs [R] of response tokens under softmax(log p̄ / temperature), p̄ the models' mean probabilities."""
    states = [response_states(model, sequences)[0] for model in models]
    tokens = sequences.response_tokens
    found = torch.empty(len(tokens), device=tokens.device)
    size = max(1, logit_chunk(models[0], True) // len(models))
    for first in range(0, len(tokens), size):
        part = slice(first, first + size)
        mean = mean_log_probs(model.logits(own[part]) for model, own in zip(models, states, strict=True))
        logs = mean if temperature == 1 else torch.log_softmax(mean / temperature, -1)
        found[part] = logs.gather(1, tokens[part, None])[:, 0]
    return found
