"""Storage of keys and values: a slot is taken in `KVCache.add`, grown in `reserve` and freed in `keep`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CachedPrefix:
    """What is known of the first tokens of a row, to continue from later.

    keys_values [layers, 2, G, length, D]; states [length, H] behind the frozen blocks, H = 0 where they are not kept.
    """

    keys_values: Tensor
    states: Tensor

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.keys_values.shape[3]


class KVCache:
    """Keys and values of rows that come and go. Row i is slot i of one tensor per layer.

    A row begins at position 0 of its slot, so rows need no padding between them. What a freed slot held is
    overwritten by the next row that takes it.

    Args:
        layers: number of attention layers.
        heads: heads of keys and values, G.
        size: width of a head, D.
        dtype: of the keys and values.
        device: where they are.
        width: of the states that are kept besides, H; 0: none are.
        states_dtype: of these.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        width: int = 0,
        states_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._shape = layers, heads, size
        self.dtype, self.device = dtype, device
        # States of the tokens behind the frozen blocks [slots, length, H].
        self.states = torch.zeros(0, 0, width, dtype=states_dtype, device=device)
        # Of each layer, keys and values [2, slots, G, length, D].
        self.layers: list[Tensor] = []
        # Tokens of each row, [rows] int64.
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        """Slots in use."""
        return len(self.lengths)

    @property
    def slots(self) -> int:
        """Slots there are."""
        return self.layers[0].shape[1] if self.layers else 0

    @property
    def slot_length(self) -> int:
        """Tokens that a slot has room for."""
        return self.layers[0].shape[3] if self.layers else 0

    def reserve(self, slots: int, length: int) -> None:
        """Make room for so many rows of so many tokens; what is there stays.

        What is outgrown once becomes at least twice as large.
        """
        have = (self.slots, self.slot_length)
        if have[0] >= slots and have[1] >= length:
            return
        slots, length = (
            has if wanted <= has else max(wanted, 2 * has)
            for has, wanted in zip(have, (slots, length), strict=True)
        )
        layers, heads, size = self._shape
        rows, top = len(self), int(self.lengths.max()) if len(self) else 0
        for layer in range(layers):
            # Zeros, for attention multiplies what it masks by 0, and 0 · NaN would be NaN.
            more = torch.zeros(2, slots, heads, length, size, dtype=self.dtype, device=self.device)
            if self.layers[layer:]:
                more[:, :rows, :, :top] = self.layers[layer][:, :rows, :, :top]
            self.layers[layer : layer + 1] = [more]
        states = self.states.new_zeros(slots, length, self.states.shape[-1])
        states[:rows, :top] = self.states[:rows, :top]
        self.states = states

    def add(self, lengths: Tensor) -> None:
        """Take slots, behind those in use, for rows of these many tokens, [k] int64. See `reserve`."""
        self.lengths = torch.cat([self.lengths, lengths])

    def keep(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was; the slots of rows that are not named are freed.

        Args:
            rows: [k] int64. A row that stays where it is costs nothing.
        """
        places = torch.arange(len(rows), device=rows.device)
        moved = (rows != places).nonzero()[:, 0]
        if len(moved):
            self.copy(rows[moved], moved, int(self.lengths.max()))
        self.lengths = self.lengths[rows]

    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` tokens of slots source [k] to slots target [k]."""
        for layer in self.layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]
        self.states[target, :length] = self.states[source, :length]

    def snapshot(self, row: int, length: int) -> CachedPrefix:
        """A copy of what is known of the first tokens of a row."""
        keys_values = torch.stack([layer[:, row, :, :length] for layer in self.layers])
        return CachedPrefix(keys_values, self.states[row, :length].clone())

    def restore(self, slot: int, prefix: CachedPrefix) -> None:
        """Write a prefix to the beginning of a slot."""
        for layer, part in zip(self.layers, prefix.keys_values, strict=True):
            layer[:, slot, :, : prefix.length] = part
        self.states[slot, : prefix.length] = prefix.states

    def cells(self, positions: Tensor, slots: Tensor | None) -> Tensor:
        """Where each head of the tokens at positions [b, t] of the slots is among a layer's keys, [b · t · G].

        Args:
            positions: [b, t] int64.
            slots: [b] int64; None: the first b.
        """
        heads = self._shape[1]
        rows = torch.arange(len(positions), device=positions.device) if slots is None else slots
        first = rows[:, None] * heads + torch.arange(heads, device=positions.device)
        return (first[:, None] * self.slot_length + positions[..., None]).flatten()

    def write_states(self, x: Tensor, positions: Tensor, slots: Tensor | None) -> None:
        """Keep states x [b, t, H] of the tokens at positions [b, t] of the slots [b]; None: the first b."""
        rows = torch.arange(len(positions), device=positions.device) if slots is None else slots
        self.states[rows[:, None], positions] = x.to(self.states.dtype)

    def write(
        self, layer: int, k: Tensor, v: Tensor, cells: Tensor, slots: Tensor | None, length: int
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values of one layer and return all of the slots.

        Args:
            layer: which layer.
            k: keys [b, t, G, D].
            v: values [b, t, G, D].
            cells: where they go, of `cells`.
            slots: [b] int64; None: the first b.
            length: how many tokens of the slots to return.

        Returns:
            Keys and values of the slots, [b, G, length, D] each.
        """
        keys, values = self.layers[layer]
        for kept, new in ((keys, k), (values, v)):
            kept.view(-1, kept.shape[-1]).index_copy_(0, cells, new.flatten(0, 2).to(kept.dtype))
        if slots is None:
            return keys[: len(k), :, :length], values[: len(k), :, :length]
        return keys[slots, :, :length], values[slots, :, :length]
