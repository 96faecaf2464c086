"""The states of a model's last layer as features of texts, from one pass; and its probabilities of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxlm.classification.inputs import Features, Inputs
from proxlm.config import FeatureSettings, ModelSettings
from proxlm.config.gguf_paths import is_gguf
from proxlm.data.shots import joined
from proxlm.data.tokenizer import encode_prompt
from proxlm.errors import ConfigError, DataError
from proxlm.kernels.device import resolve_device
from proxlm.models.encoder import Encoder, encoder_tokenizer, load_encoder, longest_text
from proxlm.models.forward import micro_batches, response_states
from proxlm.models.language_model import LanguageModel
from proxlm.models.source import ModelSource, named_as
from proxlm.models.value_model import LANGUAGE_MODELS
from proxlm.rl.ragged import row_of_element
from proxlm.text import shown
from proxlm.types import Progress, Sequences

Pooled = Callable[[Sequence[Sequence[int]]], tuple[Tensor, Tensor]]
"""Token ids of b texts → features [b, d] and label probabilities [b, K]."""


class FeatureReader:
    """From texts to what classifiers read of them; the model's weights are loaded with the first texts.

    Args:
        settings: Of the model.
        features: The section [features].
        classes: In their order, for `features.label_texts`.
        truncate: Cut the beginning off a text that is too long, instead of an error.

    Raises:
        ConfigError: The model has no such features.
        ModelError: Its configuration or its tokenizer cannot be read.
    """

    def __init__(
        self,
        settings: ModelSettings,
        features: FeatureSettings,
        classes: Sequence[str],
        truncate: bool,
    ) -> None:
        self._settings, self._truncate = features, truncate
        if features.label_texts and set(features.label_texts) != set(classes):
            named = ", ".join(shown(name, 20) for name in classes[:8])
            raise ConfigError(f"features.label_texts: must name the classes {named}")
        source = ModelSource(settings)
        with named_as("model"):
            config = source.configuration
        if config.is_encoder_decoder:
            raise ConfigError(
                f'model = "{settings.policy}": an encoder–decoder; give a causal language model or an encoder'
            )
        architectures = [str(name) for name in getattr(config, "architectures", None) or []]
        mean = features.pooling == "mean"
        self._encode: Callable[[str], list[int]]
        self._load: Callable[[], Pooled]
        if is_gguf(source.settings.policy) or any(name.endswith(LANGUAGE_MODELS) for name in architectures):
            labels = _label_tokens(source.tokenizer, features, classes)
            self._encode = partial(encode_prompt, source.tokenizer)
            self._limit = source.context
            self._load = lambda: partial(_of_decoder, source.load(), mean, labels)
            return
        if features.label_texts:
            raise ConfigError(
                "features.label_texts: of causal language models, not of encoders; leave it out"
            )
        path, device, tokenizer = (
            settings.policy,
            _device(settings.device),
            encoder_tokenizer(settings.policy),
        )
        self._encode = lambda text: list(tokenizer(text, verbose=False)["input_ids"])
        self._limit = longest_text(config, tokenizer)
        self._load = lambda: partial(_of_encoder, load_encoder(path, device), mean)

    @cached_property
    def _pool(self) -> Pooled:
        return self._load()

    def check(self, texts: Sequence[str], where: Sequence[str]) -> None:
        """See that texts can be read, without the weights. Raises DataError as `read`."""
        for text, place in zip(texts, where, strict=True):
            self._tokens(text, place)

    def read(self, texts: Sequence[str], where: Sequence[str], on_progress: Progress | None = None) -> Inputs:
        """Each text is read once.

        Args:
            texts: The texts.
            where: What each is called in an error.
            on_progress: Called with the number of texts that are done and of all.

        Raises:
            DataError: A text is empty or too long.
            ModelError: The model cannot be loaded.
        """
        rows = [self._tokens(text, place) for text, place in zip(texts, where, strict=True)]
        pool = self._pool
        features: list[Features] = [np.zeros(0, np.float32)] * len(rows)
        labels, done = list(features), 0
        for group in micro_batches(torch.tensor([len(row) for row in rows]), self._settings.batch_tokens):
            with torch.inference_mode():
                found, said = pool([rows[int(i)] for i in group])
            for i, state, probabilities in zip(
                group.tolist(), found.float().cpu().numpy(), said.float().cpu().numpy(), strict=True
            ):
                features[i], labels[i] = state, probabilities
            done += len(group)
            if on_progress is not None:
                on_progress(done, len(rows))
        return Inputs(texts, np.stack(features), np.stack(labels))

    def _tokens(self, text: str, where: str) -> list[int]:
        ids = self._encode(self._settings.template.replace("{text}", text))
        if not ids:
            raise DataError(f"{where}: the text has no tokens")
        if self._limit is None or len(ids) <= self._limit:
            return ids
        if not self._truncate:
            raise DataError(
                f"{where}: {len(ids)} tokens are more than the model's context of {self._limit}; shorten it, or set"
                " data.on_long_text = truncate"
            )
        return [ids[0], *ids[len(ids) - self._limit + 1 :]]


def _of_decoder(
    model: LanguageModel, mean: bool, labels: Tensor, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """All states of a text are those that predict its tokens from the second on, and the final one."""
    sequences = Sequences.from_lists([row[:1] for row in rows], [row[1:] for row in rows]).to(model.device)
    states, final = response_states(model, sequences)
    final = final.float()
    said = final.new_zeros(len(rows), 0)
    if len(labels):
        said = model.logits(final.to(model.states_dtype)).float()[:, labels.to(model.device)].softmax(-1)
    if not mean:
        return final, said
    sums = final.index_add(0, row_of_element(sequences.response_offsets), states.float())
    return sums / sequences.lengths[:, None], said


def _of_encoder(encoder: Encoder, mean: bool, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """An encoder has read the whole text at its first token, which "last" stands for."""
    means, first = encoder.pooled(rows)
    return (means if mean else first), means.new_zeros(len(rows), 0)


def _label_tokens(tokenizer: Any, features: FeatureSettings, classes: Sequence[str]) -> Tensor:
    """The first token of each class's text behind a text, [K]; none without `features.label_texts`.

    Raises:
        ConfigError: Two begin with the same token, or one changes the tokens before it.
    """
    texts = features.label_texts
    if not texts:
        return torch.zeros(0, dtype=torch.int64)
    before = features.template.replace("{text}", "text")
    start = encode_prompt(tokenizer, before)
    found: list[int] = []
    for name in classes:
        ids = encode_prompt(tokenizer, joined(before, str(texts[name]), ""))
        if ids[: len(start)] != start or len(ids) == len(start):
            raise ConfigError(
                f"features.label_texts: {shown(repr(texts[name]), 40)} changes the tokens of the text before it;"
                " begin it with a space, or end features.template otherwise"
            )
        found.append(ids[len(start)])
    if len(set(found)) < len(found):
        raise ConfigError("features.label_texts: two of them begin with the same token; choose other texts")
    return torch.tensor(found)


def _device(name: str) -> torch.device:
    try:
        return resolve_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
