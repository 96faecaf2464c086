"""Decoders: the model's passes over a batch whose rows come and go.

A decoder returns the state after the newest token of each row. `BlockDecoder` (block_decoder.py) keeps keys and
values of the model types it knows, and lets rows join; `CachedDecoder` has transformers keep them;
`RecurrentDecoder` keeps the state of proxlm's own recurrent model type; `RecomputeDecoder` runs whole sequences
again, for model types whose cache cannot drop rows; `TargetDecoder` runs an encoder once and then its decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from proxlm.config import RolloutWeights
from proxlm.engine.block_decoder import BlockDecoder
from proxlm.engine.kv_cache import CachedPrefix
from proxlm.errors import ModelError
from proxlm.kernels.block_layouts import LAYOUTS, has_layout
from proxlm.kernels.cuda_graph import CudaGraphs
from proxlm.models.encoder_decoder import EncoderDecoderTrunk
from proxlm.models.forward import pad_with_mask
from proxlm.models.language_model import LanguageModel
from proxlm.models.model_types import SHORT_NAMES
from proxlm.rl.ragged import offsets_of
from proxlm.types import Sequences


class Decoder(Protocol):
    """Runs the model on the rows of a batch. Rows are numbered as they were added, until `keep` says otherwise."""

    @property
    def can_join(self) -> bool:
        """Whether rows may be added beside others. If not, `add` needs a batch without rows."""

    @property
    def keeps_states(self) -> bool:
        """Whether it keeps the states behind the model's frozen blocks."""

    def add(
        self, prompts: Sequence[Sequence[int]], room: int, prefixes: Sequence[CachedPrefix | None]
    ) -> Tensor:
        """Read prompts as new rows, behind those there are.

        Args:
            prompts: token ids, at least one each.
            room: how many tokens a row may become longer by.
            prefixes: what is known of the first tokens of each prompt, from `snapshot`; never of all its tokens.

        Returns:
            The state after each prompt, [k, H].
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [b] int64; returns the state after it, [b, H]."""

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, [k] int64; rows that are not named are dropped."""

    def logits(self, states: Tensor) -> Tensor:
        """States [b, H] → logits [b, V]."""

    def snapshot(self, row: int, length: int) -> CachedPrefix | None:
        """What is known of a row's first `length` tokens, to continue from later; None if nothing can be kept."""

    def frozen_states(self, row: int) -> Tensor | None:
        """The states of a row's tokens behind the model's frozen blocks, [T, H]; None if they are not kept."""


class BatchDecoder:
    """What the decoders have in common whose rows all begin together. They read every prompt whole."""

    can_join = False
    keeps_states = False

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def logits(self, states: Tensor) -> Tensor:
        """The model's own."""
        return self.model.logits(states)

    def snapshot(self, row: int, length: int) -> CachedPrefix | None:  # noqa: ARG002
        """Nothing."""
        return None

    def frozen_states(self, row: int) -> Tensor | None:  # noqa: ARG002
        """Nothing."""
        return None


class CachedDecoder(BatchDecoder):
    """Prompts are padded on the left under a mask; positions count real tokens only."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.takes_positions = "position_ids" in inspect.signature(model.trunk.forward).parameters

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002
        prefixes: Sequence[CachedPrefix | None],  # noqa: ARG002
    ) -> Tensor:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache(config=self.model.network.config)
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


class RecurrentDecoder(BatchDecoder):
    """The state of a recurrence is the cache: each token costs the same, however long the row is.

    Prompts are padded on the right under a mask, which leaves a row's state as it was after its last real token.
    """

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002
        prefixes: Sequence[CachedPrefix | None],  # noqa: ARG002
    ) -> Tensor:
        padded, mask, last = _padded(prompts, self.model.device)
        output = self.model.states(padded, attention_mask=mask, use_cache=True)
        self.cache: Any = output.past_key_values
        return output.last_hidden_state.flatten(0, 1)[last]

    def step(self, tokens: Tensor) -> Tensor:
        output = self.model.states(tokens[:, None], past_key_values=self.cache, use_cache=True)
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)


class RecomputeDecoder(BatchDecoder):
    """No cache: exact for every causal model, at quadratic cost."""

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002
        prefixes: Sequence[CachedPrefix | None],  # noqa: ARG002
    ) -> Tensor:
        self.rows = [list(prompt) for prompt in prompts]
        return self._run()

    def step(self, tokens: Tensor) -> Tensor:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        return self._run()

    def keep(self, rows: Tensor) -> None:
        self.rows = [list(self.rows[i]) for i in rows.tolist()]  # a row may be named twice

    def _run(self) -> Tensor:
        padded, _, last = _padded(self.rows, self.model.device)
        return self.model.states(padded, use_cache=False).last_hidden_state.flatten(0, 1)[last]


class TargetDecoder(BatchDecoder):
    """For encoder–decoders. The prompts are encoded once; all rows of the decoder are of one length, so unpadded.

    cached False: the decoder's tokens are run again at each step, for types that keep no keys and values.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.trunk = EncoderDecoderTrunk(model.network)
        keeps = "past_key_values" in inspect.signature(self.trunk.decoder.forward).parameters
        self.cached = keeps and model.cached

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002
        prefixes: Sequence[CachedPrefix | None],  # noqa: ARG002
    ) -> Tensor:
        from transformers import DynamicCache, EncoderDecoderCache

        config = self.model.network.config.get_text_config(decoder=True)
        self.cache: Any = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        padded, self.mask, _ = _padded(prompts, self.model.device)
        with self.model.autocast():
            self.encoded = self.trunk.encode(padded, self.mask)
        self.tokens = padded.new_empty(len(prompts), 0)
        return self.step(padded.new_full((len(prompts),), self.model.start_id))

    def step(self, tokens: Tensor) -> Tensor:
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=-1)
        arguments: dict[str, Any] = {"use_cache": False}
        if self.cached:
            arguments = {"past_key_values": self.cache, "use_cache": True}
        with self.model.autocast():
            output = self.trunk.decode(
                tokens[:, None] if self.cached else self.tokens, self.encoded, self.mask, **arguments
            )
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        if self.cached:
            self.cache.batch_select_indices(rows)
        self.encoded, self.mask, self.tokens = self.encoded[rows], self.mask[rows], self.tokens[rows]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the right [b, t], the mask of real tokens [b, t], and where each one's last is in [b · t]."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    flat = torch.tensor([token for row in rows for token in row], device=device)
    padded, mask = pad_with_mask(Sequences(flat, offsets_of(lengths), lengths))
    return padded, mask, torch.arange(len(rows), device=device) * padded.shape[1] + lengths - 1


def make_decoder(
    model: LanguageModel,
    weights: RolloutWeights = "policy",
    keep_states: bool = False,
    cuda_graphs: bool = False,
) -> Decoder:
    """The decoder for a model, by its type.

    Args:
        model: the model.
        weights: decode with the policy's weights, or with copies rounded to another precision.
        keep_states: keep the states behind the model's frozen blocks, if the decoder can.
        cuda_graphs: on a CUDA device, repeat decoding steps from recordings.

    Raises:
        ModelError: rounded weights or recordings for a model type that block_decoder.py does not know.
    """
    graphs = cuda_graphs and model.device.type == "cuda"
    if model.own_kernels and has_layout(model.network.config):
        return BlockDecoder(model, weights, keep_states, CudaGraphs(model.device) if graphs else None)
    if weights != "policy" or graphs:
        rounded = weights != "policy"
        what, other = (f"weights = {weights}", '"policy"') if rounded else ("cuda_graphs", "false")
        raise ModelError(
            f"{model.source}: rollout.{what} is for model types {', '.join(LAYOUTS)}, and this is"
            f" {model.network.config.model_type}; set it to {other}"
        )
    if model.encoder_decoder:
        return TargetDecoder(model)
    if model.network.config.model_type in SHORT_NAMES.values():
        return RecurrentDecoder(model)
    return CachedDecoder(model) if model.cached and _has_plain_cache(model) else RecomputeDecoder(model)


def _has_plain_cache(model: LanguageModel) -> bool:
    """Whether every layer's cache is one of the two that drop rows and mask padding exactly.

    By exact type: a recurrent state would see the padding, and a subclass may keep more than keys and values
    (DeepSeek-V4's compresses windows that begin with the padding).
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in inspect.signature(model.trunk.forward).parameters:
        return False
    layers: list[Any] = DynamicCache(config=model.network.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
