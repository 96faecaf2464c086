"""Supervised examples as ragged rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from proxlm.data.on_disk import NumbersOnDisk
from proxlm.data.supervised import SFTExample
from proxlm.data.token_streams import TokenStreams
from proxlm.errors import DataError
from proxlm.rl.ragged import offsets_of
from proxlm.types import Sequences


@dataclass(frozen=True)
class Examples:
    """n rows of tokens with a loss on some: prompt, response, and which tokens count.

    tokens [N] int32 or uint16 and counted [N] bool hold the rows one after another and may be pages of a file;
    starts, lengths and prompt_lengths [n] int64 say where each row is. No token of a prompt counts. sources: the
    number of each row's source [n], where they are of several in a mixture.
    """

    tokens: Tensor
    counted: Tensor
    starts: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    sources: Tensor | None = None

    @staticmethod
    def from_rows(rows: Iterable[SFTExample | None]) -> Examples:
        """The rows, kept on disk; None becomes a row of length 0, which `select` omits."""
        tokens, counted = NumbersOnDisk(torch.int32), NumbersOnDisk(torch.bool)
        lengths, prompt_lengths = array("q"), array("q")
        for row in rows:
            before = len(tokens)
            if row is not None:
                tokens.extend(row.prompt_ids)
                tokens.extend(row.response_ids)
                counted.extend((False,) * len(row.prompt_ids))
                counted.extend(row.loss_mask)
            lengths.append(len(tokens) - before)
            prompt_lengths.append(0 if row is None else len(row.prompt_ids))
        ends = torch.tensor(lengths).cumsum(0)
        return Examples(
            tokens.tensor(),
            counted.tensor(),
            ends - torch.tensor(lengths),
            torch.tensor(lengths),
            torch.tensor(prompt_lengths),
        )

    @staticmethod
    def from_sources(sources: Iterable[Iterable[SFTExample | None]], several: bool) -> Examples:
        """The rows of sources one after another, as `from_rows`; several: the number of each row's source is kept."""
        numbers = array("q")

        def rows() -> Iterator[SFTExample | None]:
            for number, source in enumerate(sources):
                for row in source:
                    numbers.append(number)
                    yield row

        made = Examples.from_rows(rows())
        return replace(made, sources=torch.tensor(numbers)) if several else made

    @staticmethod
    def from_blocks(blocks: Tensor) -> Examples:
        """Packed text [n, block]: each block predicts all its tokens except the first."""
        count, block = blocks.shape
        return Examples(
            blocks.flatten(),
            torch.ones(1, dtype=torch.bool).expand(blocks.numel()),
            torch.arange(count) * block,
            torch.tensor([block]).expand(count),
            torch.ones(1, dtype=torch.int64).expand(count),
        )

    @staticmethod
    def from_streams(
        streams: TokenStreams, wanted: Sequence[int], block: int, names: Sequence[str] = ()
    ) -> Examples:
        """Some streams of text cut into blocks, as `from_blocks`.

        Args:
            streams: Streams of tokens.
            wanted: The numbers of those to take; each is a source.
            block: Tokens of a block. Those after the last whole one, fewer than `block`, are left out.
            names: Of the sources, where they are of a mixture; none: nobody asks which source a block is of.

        Raises:
            DataError: A stream has not even one block.
        """
        starts, sources = list[Tensor](), list[Tensor]()
        for number, stream in enumerate(wanted):
            begin, end = streams.span(stream)
            count = (end - begin) // block
            if not count:
                where = f"the text of {names[number]}" if names else "the text"
                raise DataError(
                    f"{where} has {end - begin} tokens, less than one block of {block}; give more text or a lower"
                    " train.block"
                )
            starts.append(begin + torch.arange(count) * block)
            sources.append(torch.full((count,), number))
        places, ones = torch.cat(starts), torch.ones(1, dtype=torch.bool)
        count = len(places)
        return Examples(
            streams.tokens,
            ones.expand(len(streams.tokens)),
            places,
            torch.tensor([block]).expand(count),
            torch.ones(1, dtype=torch.int64).expand(count),
            torch.cat(sources) if names else None,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Iterable[int]) -> Examples:
        """The given rows except those of length 0. Raises DataError if none is left."""
        chosen = torch.tensor(list(rows), dtype=torch.int64)
        chosen = chosen[self.lengths[chosen] > 0]
        if not len(chosen):
            raise DataError("no record that can be used is left for training or for validation")
        return Examples(
            self.tokens,
            self.counted,
            self.starts[chosen],
            self.lengths[chosen],
            self.prompt_lengths[chosen],
            None if self.sources is None else self.sources[chosen],
        )

    def rows_without(self, others: Examples) -> list[int]:
        """The rows that are not, token for token, also rows of `others`."""
        known = {(tokens.tobytes(), prompt) for tokens, prompt in others._rows()}
        return [
            i for i, (tokens, prompt) in enumerate(self._rows()) if (tokens.tobytes(), prompt) not in known
        ]

    def _rows(self) -> Iterator[tuple[Any, int]]:
        """Each row's tokens as an array, and how many of them are the prompt."""
        tokens = self.tokens.numpy()
        for start, length, prompt in zip(self.starts, self.lengths, self.prompt_lengths, strict=True):
            yield tokens[start : start + length], int(prompt)

    def batch(self, rows: Sequence[int]) -> tuple[Sequences, Tensor]:
        """The given rows as sequences, and their loss mask [R] bool."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        starts, lengths, prompts = self.starts[chosen], self.lengths[chosen], self.prompt_lengths[chosen]
        spans = list(
            zip(starts.tolist(), (starts + prompts).tolist(), (starts + lengths).tolist(), strict=True)
        )
        tokens = torch.cat([self.tokens[start:end] for start, _, end in spans]).long()
        mask = torch.cat([self.counted[middle:end] for _, middle, end in spans])
        return Sequences(tokens, offsets_of(lengths), prompts), mask
