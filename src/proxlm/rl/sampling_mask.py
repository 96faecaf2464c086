"""The set that each token was sampled from, under top-k, top-p or min-p: kept exactly, and small.

The set belongs to the policy that sampled, at that moment. A threshold on the logits would not give it back: the
trainer's logits differ from the engine's by rounding, and after an update by more, so tokens at the edge would change
sides. So the tokens themselves are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxlm.rl.ragged import offsets_of, ragged_index

Piece = tuple[Tensor, float]
"""One token's set: its bytes, uint8, and its probability."""

BITS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


@dataclass(frozen=True)
class SamplingMask:
    """Which tokens of the vocabulary each of R tokens could have been.

    A set is its token ids, ascending, in as many bytes each as the vocabulary needs, or one bit for each token of the
    vocabulary, whichever is shorter; the whole vocabulary takes nothing. So a token costs at most ⌈V / 8⌉ bytes, and
    with n tokens kept at most 2 n (V ≤ 65536) or 3 n. The form follows from the length: only bits take ⌈V / 8⌉.

    Attributes:
        vocabulary: V.
        data: The sets, one after another, uint8.
        offsets: Where each begins in `data`, [R+1] int64.
        mass: The probability of each set before the others were left out, under the policy that sampled, [R] float32;
            NaN where it is not known.
    """

    vocabulary: int
    data: Tensor
    offsets: Tensor
    mass: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @staticmethod
    def of(kept: Tensor, mass: Tensor | None = None) -> SamplingMask:
        """The mask of sets given as kept [R, V] bool, with their probabilities [R]; None: not known.

        Raises ValueError for an empty set.
        """
        rows, size = kept.shape
        width, bits = _id_bytes(size), -(-size // 8)
        counts = kept.sum(-1)
        if rows and int(counts.min()) == 0:
            raise ValueError("SamplingMask: a token is not sampled from an empty set")
        lengths = torch.where(counts * width < bits, counts * width, bits)
        lengths = torch.where(counts == size, 0, lengths)
        offsets = offsets_of(lengths)
        data = torch.empty(int(offsets[-1]), dtype=torch.uint8, device=kept.device)
        by_id, by_bit = ((lengths > 0) & (lengths < bits)).nonzero()[:, 0], (lengths == bits).nonzero()[:, 0]
        ids = kept[by_id].nonzero()[:, 1]
        shifts = 8 * torch.arange(width, device=kept.device)
        data[ragged_index(offsets, by_id)] = ((ids[:, None] >> shifts) & 255).to(torch.uint8).flatten()
        padded = kept.new_zeros(len(by_bit), 8 * bits, dtype=torch.uint8)
        padded[:, :size] = kept[by_bit]
        packed = (padded.view(-1, bits, 8) * BITS.to(kept.device)).sum(-1, dtype=torch.uint8)
        data[ragged_index(offsets, by_bit)] = packed.flatten()
        known = torch.full((rows,), torch.nan, device=kept.device) if mass is None else mass.float()
        return SamplingMask(size, data, offsets, known)

    @staticmethod
    def whole(count: int, vocabulary: int) -> SamplingMask:
        """The mask of `count` tokens that could have been any token of the vocabulary."""
        nothing, offsets = torch.empty(0, dtype=torch.uint8), torch.zeros(count + 1, dtype=torch.int64)
        return SamplingMask(vocabulary, nothing, offsets, torch.ones(count))

    def dropped(self, span: slice | None = None) -> Tensor:
        """True for the tokens that were not in the set, [r, V] bool, of the tokens of a span [r]; None: of all."""
        starts = self.offsets[:-1][span or slice(None)]
        lengths = (self.offsets[1:] - self.offsets[:-1])[span or slice(None)]
        size, width, bits = self.vocabulary, _id_bytes(self.vocabulary), -(-self.vocabulary // 8)
        device = self.data.device
        dropped = torch.zeros(len(lengths), size, dtype=torch.bool, device=device)
        by_id, by_bit = ((lengths > 0) & (lengths < bits)).nonzero()[:, 0], (lengths == bits).nonzero()[:, 0]
        counts = lengths[by_id] // width
        first = torch.repeat_interleave(offsets_of(counts)[:-1], counts)
        within = torch.arange(len(first), device=device) - first
        at = torch.repeat_interleave(starts[by_id], counts) + width * within
        places = at[:, None] + torch.arange(width, device=device)
        ids = (self.data[places].long() << (8 * torch.arange(width, device=device))).sum(-1)
        dropped[by_id] = True
        dropped[torch.repeat_interleave(by_id, counts), ids] = False
        packed = self.data[starts[by_bit][:, None] + torch.arange(bits, device=device)]
        unpacked = (packed[..., None] & BITS.to(device)).eq(0).flatten(1)
        dropped[by_bit] = unpacked[:, :size]
        return dropped

    def over(self, vocabulary: int) -> SamplingMask:
        """The same sets in a vocabulary that has all of these tokens, by the same ids, and perhaps others after them.

        Raises ValueError for a smaller one.
        """
        if vocabulary == self.vocabulary:
            return self
        if vocabulary < self.vocabulary:
            raise ValueError(f"SamplingMask: sets of {self.vocabulary} tokens do not fit in {vocabulary}")
        kept = ~self.dropped()
        more = kept.new_zeros(len(kept), vocabulary - self.vocabulary)
        return SamplingMask.of(torch.cat([kept, more], 1))

    def counts(self) -> Tensor:
        """How many tokens each set has, [R] int64."""
        size, width, bits = self.vocabulary, _id_bytes(self.vocabulary), -(-self.vocabulary // 8)
        lengths = self.offsets[1:] - self.offsets[:-1]
        counts = torch.where(lengths == 0, size, lengths // width)
        by_bit = (lengths == bits).nonzero()[:, 0]
        packed = self.data[ragged_index(self.offsets, by_bit)].view(-1, bits)
        counts[by_bit] = (packed[..., None] & BITS.to(packed.device)).ne(0).sum((-2, -1))
        return counts

    def select(self, tokens: Tensor) -> SamplingMask:
        """The sets of the tokens with these indices, in that order. tokens [r] int64."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[tokens]
        data = self.data[ragged_index(self.offsets, tokens)]
        return SamplingMask(self.vocabulary, data, offsets_of(lengths), self.mass[tokens])

    def split(self) -> list[Piece]:
        """Each token's set by itself; `from_pieces` joins them again."""
        data = self.data.split((self.offsets[1:] - self.offsets[:-1]).tolist())
        return list(zip(data, self.mass.tolist(), strict=True))

    @staticmethod
    def from_pieces(vocabulary: int, pieces: Sequence[Piece]) -> SamplingMask:
        """The mask of tokens with these sets."""
        lengths = torch.tensor([len(data) for data, _ in pieces], dtype=torch.int64)
        data = torch.cat([torch.empty(0, dtype=torch.uint8), *(data for data, _ in pieces)])
        mass = torch.tensor([mass for _, mass in pieces], dtype=torch.float32)
        return SamplingMask(vocabulary, data, offsets_of(lengths), mass)

    @staticmethod
    def join(parts: Sequence[SamplingMask]) -> SamplingMask:
        """The parts concatenated. Raises ValueError if their vocabularies differ."""
        sizes = {part.vocabulary for part in parts}
        if len(sizes) != 1:
            raise ValueError(
                f"SamplingMask: parts of vocabularies of {sorted(sizes)} tokens; all must be alike"
            )
        lengths = torch.cat([part.offsets[1:] - part.offsets[:-1] for part in parts])
        data, mass = (torch.cat([getattr(part, name) for part in parts]) for name in ("data", "mass"))
        return SamplingMask(sizes.pop(), data, offsets_of(lengths), mass)

    def to(self, device: torch.device) -> SamplingMask:
        """The same on `device`."""
        return SamplingMask(
            self.vocabulary, self.data.to(device), self.offsets.to(device), self.mass.to(device)
        )


def _id_bytes(vocabulary: int) -> int:
    """How many bytes a token id takes: 1 up to 256 tokens, 2 up to 65536, then 3."""
    return max(1, -(-(vocabulary - 1).bit_length() // 8))


def mask_logits(logits: Tensor, mask: SamplingMask | None, span: slice | None = None) -> Tensor:
    """Logits [r, V] with −inf outside the sets of a span of tokens, so that their softmax is π renormalised.

    log π_S(a) = log π(a) − log Σ_{v ∈ S} π(v) = z_a − log Σ_{v ∈ S} exp z_v for a in S.

    Args:
        logits: [r, V].
        mask: The sets; None: the logits are returned as they are.
        span: Which of the mask's tokens the logits are of; None: all.

    Raises:
        ValueError: The logits are of another vocabulary.
    """
    if mask is None:
        return logits
    if mask.vocabulary != logits.shape[-1]:
        raise ValueError(
            f"sampling mask of {mask.vocabulary} tokens, but logits of {logits.shape[-1]}: the rollout is of another"
            " model"
        )
    return logits.masked_fill(mask.dropped(span), -torch.inf)
