"""Step-by-step decoding of a batch whose rows can leave it.

The decoders give the state after the newest token of each row. `CachedDecoder` keeps keys and values;
`RecurrentDecoder` the state of proxlm's own recurrent family; `RecomputeDecoder` runs the whole sequence anew, for
model types whose cache cannot drop rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from proxlm.models.families import SHORT_NAMES
from proxlm.models.forward import pad_right
from proxlm.models.language_model import LanguageModel
from proxlm.types import Sequences, offsets_of


class Decoder(Protocol):
    """Rows are numbered as given, less those dropped by `keep`."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts; returns the state after each, [b, H]."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [b] int64; returns the state after it, [b, H]."""

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these, [k] int64."""


class CachedDecoder:
    """Prompts are padded on the left under a mask; positions count real tokens only."""

    def __init__(self, model: LanguageModel) -> None:
        from transformers import DynamicCache

        self.model = model
        self.cache: Any = DynamicCache(config=model.network.config)
        self.takes_positions = "position_ids" in inspect.signature(model.trunk.forward).parameters

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(len(p) for p in prompts)
        rows = [[0] * (longest - len(p)) + list(p) for p in prompts]
        lengths = torch.tensor([len(p) for p in prompts], device=self.model.device)
        padding = longest - lengths
        self.mask = (torch.arange(longest, device=self.model.device) >= padding[:, None]).long()
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.lengths = lengths
        return self._run(torch.tensor(rows, device=self.model.device), positions)

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=-1)
        self.lengths = self.lengths + 1
        return self._run(tokens[:, None], self.lengths[:, None] - 1)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]

    def _run(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        extra = {"position_ids": positions} if self.takes_positions else {}
        output = self.model.states(
            input_ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **extra
        )
        return output.last_hidden_state[:, -1]


class RecurrentDecoder:
    """The state of a recurrence is the cache: each token costs the same, however long the row is.

    Prompts are padded on the right under a mask, which leaves a row's state as its last real token made it.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.cache: Any = None

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        padded, lengths, last = _padded(prompts, self.model.device)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        output = self.model.states(padded, attention_mask=mask, use_cache=True)
        self.cache = output.past_key_values
        return output.last_hidden_state.flatten(0, 1)[last]

    def step(self, tokens: Tensor) -> Tensor:
        output = self.model.states(tokens[:, None], past_key_values=self.cache, use_cache=True)
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)


class RecomputeDecoder:
    """No cache: exact for every causal model, at quadratic cost."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.rows: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.rows = [list(p) for p in prompts]
        return self._run()

    def step(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._run()

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]

    def _run(self) -> Tensor:
        padded, _, last = _padded(self.rows, self.model.device)
        return self.model.states(padded, use_cache=False).last_hidden_state.flatten(0, 1)[last]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the right [b, t], their lengths [b], and where each one's last token is in [b · t]."""
    lengths = torch.tensor([len(row) for row in rows])
    flat = torch.tensor([token for row in rows for token in row])
    batch = Sequences(flat, offsets_of(lengths), lengths).to(device)
    padded, place = pad_right(batch)
    return padded, batch.lengths, place[batch.offsets[1:] - 1]


def make_decoder(model: LanguageModel) -> Decoder:
    """The decoder for what the model keeps: plain keys and values, a state of ours, or nothing that drops rows."""
    if model.network.config.model_type in SHORT_NAMES.values():
        return RecurrentDecoder(model)
    return CachedDecoder(model) if _has_plain_cache(model) else RecomputeDecoder(model)


def _has_plain_cache(model: LanguageModel) -> bool:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if "past_key_values" not in inspect.signature(model.trunk.forward).parameters:
        return False
    layers = DynamicCache(config=model.network.config).layers
    # Sliding-window and full-attention layers drop rows exactly; recurrent state would see the padding.
    return all(isinstance(layer, DynamicLayer) and not hasattr(layer, "conv_states") for layer in layers)
