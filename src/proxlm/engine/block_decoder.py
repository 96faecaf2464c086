"""Decoding with blocks and a KV cache of our own: rows join and leave, and none waits for another.

Rows that join read only what the cache does not hold. Model types: kernels/block_layouts.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from proxlm.config import RolloutWeights
from proxlm.engine.kv_cache import CachedPrefix, KVCache
from proxlm.engine.prefill import prefill_passes, shared_sources
from proxlm.engine.static_steps import StaticSteps
from proxlm.kernels.attention import cached_attention
from proxlm.kernels.block_layouts import Layout, layout_of
from proxlm.kernels.cuda_graph import Capture
from proxlm.kernels.inference_products import Weights, inference_product
from proxlm.models.language_model import LanguageModel


class BlockDecoder:
    """A `decoders.Decoder` whose rows may join at any time.

    Args:
        model: of a type in kernels/block_layouts.py. Its weights must not change while the decoder is used.
        weights: decode with the policy's weights, or with copies rounded to another precision.
        keep_states: keep the states behind the model's frozen blocks; not with rounded weights, whose states are
            others.
        capture: repeat steps of fixed shapes from recordings that it makes; None: run each step.
    """

    can_join = True

    def __init__(
        self,
        model: LanguageModel,
        weights: RolloutWeights = "policy",
        keep_states: bool = False,
        capture: Capture | None = None,
    ) -> None:
        self.model, self._own = model, weights == "policy"
        self._capture = capture
        # The block whose input is kept.
        self._kept = model.frozen_blocks if keep_states and self._own else 0
        kind: Weights = weights if weights != "policy" else "bfloat16" if model.bfloat16 else "own"
        config = model.network.config
        self.layout: Layout = layout_of(model.trunk, kind)
        head = model.network.get_output_embeddings()
        self.head = inference_product([head], kind) or head
        self.cache = KVCache(
            layers=len(self.layout.blocks),
            heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            dtype=torch.bfloat16 if kind == "bfloat16" else next(model.trunk.parameters()).dtype,
            device=model.device,
            width=model.hidden_size if self._kept else 0,
            states_dtype=model.states_dtype,
        )
        # Steps on the cache's present memory, and that memory's first layer.
        self._static: tuple[StaticSteps, Tensor] | None = None

    @property
    def keeps_states(self) -> bool:
        return self._kept > 0

    def add(
        self, prompts: Sequence[Sequence[int]], room: int, prefixes: Sequence[CachedPrefix | None]
    ) -> Tensor:
        """Read prompts as new rows behind those there are; returns the state after each, [k, H].

        A prefix is of the first tokens of its prompt, never of all. Rows with the same prompt are read once.
        """
        first, device = len(self.cache), self.model.device
        longest = max(len(prompt) for prompt in prompts)
        self.cache.reserve(first + len(prompts), longest + room)
        for i, prefix in enumerate(prefixes):
            if prefix is not None:
                self.cache.restore(first + i, prefix)
        sources = shared_sources(prompts, prefixes)
        states = self._prefill(prompts, prefixes, sources, first)
        source = torch.tensor(sources, device=device)
        copies = (source != torch.arange(len(sources), device=device)).nonzero()[:, 0]
        if len(copies):
            self.cache.copy(first + source[copies], first + copies, longest)
        self.cache.add(torch.tensor([len(prompt) for prompt in prompts], device=device))
        return states[source]

    def _prefill(
        self,
        prompts: Sequence[Sequence[int]],
        prefixes: Sequence[CachedPrefix | None],
        sources: list[int],
        first: int,
    ) -> Tensor:
        """Run the unknown tokens of the rows in `sources`; the state after each, [k, H], 0 in other rows."""
        found = [
            (part.rows, self._run(part.tokens, part.starts, first + part.rows, part.counts))
            for part in prefill_passes(prompts, prefixes, sorted(set(sources)), self.model.device)
        ]
        states = found[0][1].new_zeros(len(prompts), found[0][1].shape[-1])
        for rows, x in found:
            states[rows] = x
        return states

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [b] int64; returns the state after it, [b, H]."""
        if self._capture is None:
            states = self._run(tokens[:, None], self.cache.lengths, None, None)
        else:
            states = self._static_steps(self._capture)(tokens, self.cache.lengths)
        self.cache.lengths = self.cache.lengths + 1
        return states

    def _static_steps(self, capture: Capture) -> StaticSteps:
        """Steps whose attention sees whole slots; new ones where the cache has moved."""
        memory = self.cache.layers[0]
        if self._static is None or self._static[1] is not memory:
            self._static = None  # its memory first
            steps = StaticSteps(
                lambda tokens, positions: self._run(
                    tokens[:, None], positions, None, None, self.cache.slot_length
                ),
                self.cache.slots,
                self.model.device,
                capture,
            )
            self._static = steps, memory
        return self._static[0]

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, [k] int64; the slots of the others are freed."""
        self.cache.keep(rows)

    def snapshot(self, row: int, length: int) -> CachedPrefix:
        """Keys and values of a row's first tokens, to continue from after it was dropped."""
        return self.cache.snapshot(row, length)

    def frozen_states(self, row: int) -> Tensor | None:
        """The states of a row's tokens behind the frozen blocks, [T, H] on the CPU; None: they are not kept."""
        return self.cache.states[row, : int(self.cache.lengths[row])].cpu().clone() if self._kept else None

    def logits(self, states: Tensor) -> Tensor:
        """States [b, H] → logits [b, V]: of these model types the head's own."""
        with self._autocast():
            return self.head(states)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The policy's; rounded weights decide for themselves what they compute in."""
        if self._own:
            return self.model.autocast()
        return torch.autocast(self.model.device.type, enabled=False)

    def _run(
        self,
        tokens: Tensor,
        starts: Tensor,
        slots: Tensor | None,
        counts: Tensor | None,
        top: int | None = None,
    ) -> Tensor:
        """Run tokens through the blocks and add their keys and values to the cache.

        Args:
            tokens: [b, t] int64.
            starts: position of the first token of each row, [b] int64.
            slots: the rows' slots, [b] int64; None: all rows in their order.
            counts: how many tokens of each row are real, [b] int64; None: all.
            top: how many cells of a slot attention sees; None: those up to the last position.

        Returns:
            The state after the last real token of each row, [b, H].
        """
        rows, width = tokens.shape
        # Padding may reach beyond the cache; what it leaves in the last cell is overwritten before it is read.
        positions = (starts[:, None] + torch.arange(width, device=tokens.device)).clamp(
            max=self.cache.slot_length - 1
        )
        cells = self.cache.cells(positions, slots)
        if top is None:
            top = int(positions.max()) + 1
        hidden = torch.arange(top, device=tokens.device) > positions[..., None]
        mask = torch.zeros(hidden.shape, dtype=self.cache.dtype, device=tokens.device)
        mask = mask.masked_fill_(hidden, -torch.inf)[:, None]
        with self._autocast():
            x = self.layout.embed(tokens, positions)
            rotation = self.layout.rotation(x, positions)
            for layer, block in enumerate(self.layout.blocks):
                if self._kept and layer == self._kept:
                    self.cache.write_states(x, positions, slots)
                q, k, v = block.heads(x, rotation)
                keys, values = self.cache.write(layer, k, v, cells, slots, top)
                x = block.after_attention(x, cached_attention(q, keys, values, mask, block.scale))
            last = x[:, -1] if counts is None else x[torch.arange(rows, device=x.device), counts - 1]
            return self.layout.final(last)
