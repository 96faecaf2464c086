"""Decoding with a key–value cache of our own: rows come and go, and none waits for another.

A row is a slot of one tensor. It begins at position 0, so rows need no padding between them; rows that end leave
their slots to others; rows that join read only what the cache does not hold. Model types: kernels/block_layouts.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxlm.config import RolloutWeights
from proxlm.kernels.attention import cached_attention
from proxlm.kernels.block_layouts import Layout, layout_of
from proxlm.kernels.inference_products import Weights, inference_product
from proxlm.models.forward import micro_batches
from proxlm.models.language_model import LanguageModel

# New contexts are read this many tokens at a time, padding included: enough to fill a processor.
READ_TOKENS = 2048


class Memory(NamedTuple):
    """The keys and values of a row's first tokens, [L, 2, G, length, D], to go on from later."""

    cache: Tensor

    @property
    def length(self) -> int:
        return self.cache.shape[3]


class SlotDecoder:
    """See the module. Slots are numbered as rows were added; `keep` may put rows into another order."""

    def __init__(self, model: LanguageModel, weights: RolloutWeights = "policy") -> None:
        self.model, self.own = model, weights == "policy"
        kind: Weights = weights if weights != "policy" else "bfloat16" if model.bfloat16 else "own"
        self.bfloat16 = kind == "bfloat16"
        self.layout: Layout = layout_of(model.trunk, kind)
        head = model.network.get_output_embeddings()
        self.head = inference_product([head], kind) or head
        self.cache: list[Tensor] = []  # of each layer, keys and values [2, slots, G, length, D]
        self.lengths = torch.zeros(0, dtype=torch.int64, device=model.device)

    def add(
        self, contexts: Sequence[Sequence[int]], room: int, memories: Sequence[Memory | None] = ()
    ) -> Tensor:
        """New rows behind those there are; returns the state after each context, [k, H].

        room: how many tokens a row may become longer by. memories: what of each context is known already (its
        first tokens, never all of them). Rows with the same context are read once.
        """
        first, device = len(self.lengths), self.model.device
        known = list(memories) or [None] * len(contexts)
        alike: dict[tuple[int, ...], int] = {}
        # A row with a memory of its own is like no other.
        sources = [
            i if known[i] is not None else alike.setdefault(tuple(context), i)
            for i, context in enumerate(contexts)
        ]
        longest = max(len(context) for context in contexts)
        self._reserve(first + len(contexts), longest + room)
        for i, memory in enumerate(known):
            if memory is not None:
                for layer, part in zip(self.cache, memory.cache, strict=True):
                    layer[:, first + i, :, : memory.length] = part
        states = self._read(contexts, known, sorted(set(sources)), first)
        source = torch.tensor(sources, device=device)
        copies = (source != torch.arange(len(sources), device=device)).nonzero()[:, 0]
        if len(copies):
            self._copy(first + source[copies], first + copies, longest)
        self.lengths = torch.cat([self.lengths, torch.tensor([len(c) for c in contexts], device=device)])
        return states[source]

    def _read(
        self,
        contexts: Sequence[Sequence[int]],
        known: Sequence[Memory | None],
        rows: list[int],
        first: int,
    ) -> Tensor:
        """Run the unknown part of these contexts; the state after each, [k, H] (0 elsewhere).

        Some at a time, those of like length together: that bounds what is held, and little of it is padding.
        """
        device = self.model.device
        starts = [0 if (memory := known[i]) is None else memory.length for i in rows]
        parts = [list(contexts[i][start:]) for i, start in zip(rows, starts, strict=True)]
        counts = torch.tensor([len(part) for part in parts])
        found = list[tuple[Tensor, Tensor]]()
        for group in micro_batches(counts, READ_TOKENS):
            chosen, widest = group.tolist(), int(counts[group].max())
            tokens = torch.tensor([parts[i] + [0] * (widest - len(parts[i])) for i in chosen], device=device)
            slots = torch.tensor([rows[i] for i in chosen], device=device)
            begins = torch.tensor([starts[i] for i in chosen], device=device)
            x = self._run(tokens, begins, first + slots, counts[group].to(device))
            found.append((slots, x))
        states = found[0][1].new_zeros(len(contexts), found[0][1].shape[-1])
        for slots, x in found:
            states[slots] = x
        return states

    def logits(self, states: Tensor) -> Tensor:
        """States [b, H] → logits [b, V]: of these model types the head's own."""
        with self._autocast():
            return self.head(states)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """As the policy computes; rounded weights say themselves what they compute in."""
        if self.own:
            return self.model.autocast()
        return torch.autocast(self.model.device.type, enabled=False)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row, [b] int64; returns the state after it, [b, H]."""
        states = self._run(tokens[:, None], self.lengths, None, None)
        self.lengths = self.lengths + 1
        return states

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, [k] int64; those not named are dropped. Rows that stay cost nothing."""
        places = torch.arange(len(rows), device=rows.device)
        moved = (rows != places).nonzero()[:, 0]
        if len(moved):
            self._copy(rows[moved], moved, int(self.lengths.max()))
        self.lengths = self.lengths[rows]

    def _copy(self, source: Tensor, target: Tensor, top: int) -> None:
        """The first `top` tokens of slots [k] into other slots [k]."""
        for layer in self.cache:
            layer[:, target, :, :top] = layer[:, source, :, :top]

    def remember(self, row: int) -> Memory:
        """What is known of a row, to go on from after it was dropped."""
        return Memory(torch.stack([layer[:, row, :, : int(self.lengths[row])] for layer in self.cache]))

    def _run(self, tokens: Tensor, starts: Tensor, slots: Tensor | None, counts: Tensor | None) -> Tensor:
        """Tokens [b, t] at positions starts [b] + 0 … t − 1 of the slots (all, in their order, if None).

        counts [b]: how many of each row's tokens are real (all if None). Returns the state after the last, [b, H].
        """
        rows, width = tokens.shape
        # Padding may reach beyond the cache; what it leaves in the last cell is overwritten before it is read.
        positions = (starts[:, None] + torch.arange(width, device=tokens.device)).clamp(
            max=self.cache[0].shape[3] - 1
        )
        top, cells = int(positions.max()) + 1, self._cells(positions, slots)
        hidden = torch.arange(top, device=tokens.device) > positions[..., None]
        mask = torch.zeros(hidden.shape, dtype=self.cache[0].dtype, device=tokens.device)
        mask = mask.masked_fill_(hidden, -torch.inf)[:, None]
        with self._autocast():
            x, rotation = self.layout.embed(tokens, positions)
            for layer, block in enumerate(self.layout.blocks):
                q, k, v = block.heads(x, rotation)
                keys, values = self._store(layer, k, v, cells, slots, top)
                x = block.after_attention(x, cached_attention(q, keys, values, mask, block.scale))
            last = x[:, -1] if counts is None else x[torch.arange(rows, device=x.device), counts - 1]
            return self.layout.final(last)

    def _store(
        self, layer: int, k: Tensor, v: Tensor, cells: Tensor, slots: Tensor | None, top: int
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values [b, t, G, D]; returns those of the slots up to `top`, [b, G, top, D]."""
        keys, values = self.cache[layer]
        for kept, new in ((keys, k), (values, v)):
            kept.view(-1, kept.shape[-1]).index_copy_(0, cells, new.flatten(0, 2).to(kept.dtype))
        if slots is None:
            return keys[: len(k), :, :top], values[: len(k), :, :top]
        return keys[slots, :, :top], values[slots, :, :top]

    def _cells(self, positions: Tensor, slots: Tensor | None) -> Tensor:
        """Where each head of the tokens at positions [b, t] of the slots stands among a layer's keys, [b · t · G]."""
        groups, length = self.cache[0].shape[2:4]
        rows = torch.arange(len(positions), device=positions.device) if slots is None else slots
        heads = rows[:, None] * groups + torch.arange(groups, device=positions.device)
        return (heads[:, None] * length + positions[..., None]).flatten()

    def _reserve(self, slots: int, length: int) -> None:
        """Room for so many rows of so many tokens; what is there stays."""
        config = self.model.network.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        have = (self.cache[0].shape[1], self.cache[0].shape[3]) if self.cache else (0, 0)
        if have[0] >= slots and have[1] >= length:
            return
        # Whoever outgrows it once is given twice as much.
        shape = [
            has if wanted <= has else max(wanted, 2 * has)
            for has, wanted in zip(have, (slots, length), strict=True)
        ]
        dtype = torch.bfloat16 if self.bfloat16 else next(self.model.trunk.parameters()).dtype
        rows, top = len(self.lengths), int(self.lengths.max()) if len(self.lengths) else 0
        for layer in range(len(self.layout.blocks)):
            # Zeros, for attention multiplies what it masks by 0, and 0 · NaN would be NaN.
            more = torch.zeros(2, shape[0], heads, shape[1], width, dtype=dtype, device=self.model.device)
            if self.cache[layer:]:
                more[:, :rows, :, :top] = self.cache[layer][:, :rows, :, :top]
            self.cache[layer : layer + 1] = [more]
