"""What changes the logits of a request before its token is sampled: penalties of repetition, biases, bad words.

The same numbers as transformers' RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor and
NoBadWordsLogitsProcessor, in the order in which its `generate` applies them, before temperature and filters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxlm.config.rollout import bias_ids
from proxlm.data.tokenizer import encode_continuation
from proxlm.engine.request import SamplingParams
from proxlm.errors import ModelError
from proxlm.models.encoder_decoder import start_token
from proxlm.models.language_model import LanguageModel


def spellings(tokenizer: Any, text: str) -> list[tuple[int, ...]]:
    """The token ids that a text is written with: at the beginning of a text, behind a word, and behind a space.

    Args:
        tokenizer: Of the model.
        text: A word or several.

    Returns:
        Different sequences, none of them empty.
    """
    if not text:
        return []
    first = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    others = [encode_continuation(tokenizer, form) for form in (text, f" {text}")]
    return [ids for ids in dict.fromkeys(tuple(ids) for ids in (first, *others)) if ids]


def bias_sequences(tokenizer: Any, key: str) -> list[tuple[int, ...]]:
    """The token sequences that a key of `logit_bias` stands for: its ids, or the spellings of its text."""
    ids = bias_ids(key)
    return spellings(tokenizer, key) if ids is None else [ids]


@dataclass(frozen=True)
class _Biases:
    """What is added to the logits of single tokens [n], and of a token that would complete a sequence.

    after: (the tokens before it, the token, what is added) by the last of the tokens before it.
    """

    ids: Tensor
    values: Tensor
    after: Mapping[int, list[tuple[tuple[int, ...], int, float]]]

    @staticmethod
    def of(sequences: Sequence[tuple[tuple[int, ...], float]], device: torch.device) -> _Biases:
        single = [(ids[0], value) for ids, value in sequences if len(ids) == 1]
        after: dict[int, list[tuple[tuple[int, ...], int, float]]] = {}
        for ids, value in sequences:
            if len(ids) > 1:
                after.setdefault(ids[-2], []).append((ids[:-1], ids[-1], value))
        return _Biases(
            torch.tensor([token for token, _ in single], dtype=torch.int64, device=device),
            torch.tensor([value for _, value in single], dtype=torch.float32, device=device),
            after,
        )

    def add_to(self, logits: Tensor, context: Sequence[int]) -> None:
        logits.index_add_(0, self.ids, self.values)
        for before, token, value in self.after.get(context[-1], ()) if context else ():
            if tuple(context[-len(before) :]) == before:
                logits[token] += value


class LogitProcessors:
    """Makes what changes the logits of requests. The token sequences of settings are found once."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._biases: dict[tuple[object, ...], _Biases] = {}

    def of(self, prompt: Sequence[int], params: SamplingParams) -> LogitProcessor | None:
        """What changes the logits of one request, or None if nothing does.

        Args:
            prompt: The request's.
            params: The request's.
        """
        if not params.changes_logits:
            return None
        start = self._model.encoder_decoder
        before = [start_token(self._model.network, self._model.source)] if start else list(prompt)
        return LogitProcessor(params, before, self._biases_of(params))

    def _biases_of(self, params: SamplingParams) -> _Biases:
        key = (*params.bad_words, *params.logit_bias.items())
        if key not in self._biases:
            tokenizer = self._model.tokenizer
            sequences = [
                (ids, value)
                for text, value in params.logit_bias.items()
                for ids in bias_sequences(tokenizer, text)
            ]
            bad = [ids for word in params.bad_words for ids in spellings(tokenizer, word)]
            sequences += [(ids, -math.inf) for ids in dict.fromkeys(bad)]
            size = self._model.network.config.get_text_config().vocab_size
            if wrong := [token for ids, _ in sequences for token in ids if token >= size]:
                raise ModelError(
                    f"logit_bias: {wrong[0]} is not a token of the model, whose ids end at {size - 1}"
                )
            self._biases[key] = _Biases.of(sequences, self._model.device)
        return self._biases[key]


class LogitProcessor:
    """Changes the logits of one request.

    Args:
        params: The request's.
        before: The tokens that the model continues: the prompt, or an encoder–decoder's start token.
        biases: What its words and biases add.
    """

    def __init__(self, params: SamplingParams, before: list[int], biases: _Biases) -> None:
        self._params, self._context, self._biases = params, before, biases
        self._prompt = len(before)
        # How often each token is in the response; 0: it is in the prompt alone.
        self._counts = dict.fromkeys(before, 0)

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> None:
        """Change the logits in place.

        Args:
            logits: Of the next token, [V] float32.
            tokens: What was sampled so far.
        """
        params = self._params
        for token in tokens[len(self._context) - self._prompt :]:
            self._context.append(token)
            self._counts[token] = self._counts.get(token, 0) + 1
        self._biases.add_to(logits, self._context)
        if params.repetition_penalty != 1:
            ids = torch.tensor(list(self._counts), dtype=torch.int64, device=logits.device)
            seen, penalty = logits[ids], params.repetition_penalty
            logits[ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
        if params.presence_penalty or params.frequency_penalty:
            written = {token: count for token, count in self._counts.items() if count}
            ids = torch.tensor(list(written), dtype=torch.int64, device=logits.device)
            counts = torch.tensor(list(written.values()), dtype=torch.float32, device=logits.device)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
