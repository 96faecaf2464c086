"""Documents of text kept on disk: any number of them, of any length."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, MutableSequence, Sequence

from proxlm.data.scratch import ScratchFile
from proxlm.errors import DataError
from proxlm.seeds import Purpose, derive_seed

_READ_AT_ONCE = 2**20
_CODEC = ("utf-8", "surrogatepass")


class Documents(Sequence[str]):
    """A sequence of texts in a scratch file; only two numbers for each are in memory.

    The documents that `select`, `shuffled` and `split` return share the file.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._file = ScratchFile()
        self._starts, self._ends = array("q"), array("q")
        for text in texts:
            self.append([text])

    def append(self, parts: Iterable[str]) -> None:
        """Add a document, given in parts."""
        start = self._file.size
        for part in parts:
            self._file.append(part.encode(*_CODEC))
        self._starts.append(start)
        self._ends.append(self._file.size)

    def drop_last(self) -> None:
        """Remove the last document."""
        self._ends.pop()
        self._file.size = self._starts.pop()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # slices are `select`
        return self._file.read(self._starts[i], self._ends[i]).decode(*_CODEC)

    def size(self, i: int) -> int:
        """Bytes of a document in UTF-8."""
        return self._ends[i] - self._starts[i]

    def parts(self, i: int, longest: int) -> Iterator[str]:
        """A document in parts of at most `longest` bytes, cut where GPT-2's pre-tokenizer splits words too.

        So the tokens of the parts are those of the whole for every tokenizer with that pre-tokenizer, including
        proxlm's own.
        """
        at, end = self._starts[i], self._ends[i]
        while at < end:
            block = self._file.read(at, min(at + longest, end))
            if at + len(block) < end:
                text = _whole(block).decode(*_CODEC)
                text = text[: _cut(text)]
                at += len(text.encode(*_CODEC))
            else:
                text = block.decode(*_CODEC)
                at = end
            yield text

    def select(self, rows: Iterable[int]) -> Documents:
        """The documents at `rows`, in that order."""
        rows = rows if isinstance(rows, Sequence) else list(rows)
        return self._sharing((self._starts[i] for i in rows), (self._ends[i] for i in rows))

    def shuffled(self, seed: int) -> Documents:
        """The documents in a random order, which depends on `seed` only."""
        order: MutableSequence[int] = array("q", range(len(self)))
        random.Random(seed).shuffle(order)
        return self.select(order)

    def split(self, share: float, seed: int) -> tuple[Documents, Documents]:
        """Documents for training and for validation.

        A share of the documents, at least one, is drawn by `seed` for validation. If there are too few for that
        (share × count < 1, one long file for instance), the last `share` of each text is set aside instead, from the
        end of a line or a word. Order is kept; nothing is lost or in both parts. Raises DataError if there is too
        little for two parts.
        """
        if len(self) * share < 1:
            cuts = [self._cut_position(i, share) for i in range(len(self))]
            train = self._sharing(*_spans((s, c) for s, c in zip(self._starts, cuts, strict=True)))
            validation = self._sharing(*_spans((c, e) for c, e in zip(cuts, self._ends, strict=True)))
            if len(train) and len(validation):
                return train, validation
        held_out = validation_rows(len(self), share, seed)
        return (
            self.select(array("q", (i for i in range(len(self)) if i not in held_out))),
            self.select(sorted(held_out)),
        )

    def _sharing(self, starts: Iterable[int], ends: Iterable[int]) -> Documents:
        made = Documents.__new__(Documents)
        made._file = self._file
        made._starts, made._ends = array("q", starts), array("q", ends)
        return made

    def _cut_position(self, i: int, share: float) -> int:
        """Where the last `share` of a document begins, moved back to just after a line break or space."""
        start, end = self._starts[i], self._ends[i]
        length = sum(len(block.decode(*_CODEC)) for block in self._blocks(start, end))
        target = length - max(1, round(length * share))
        cut, middle = self._place_of(i, target), self._place_of(i, target // 2)
        for separator in (b"\n", b" "):
            position = self._last(separator, middle, cut) + 1
            if position > middle:
                return position
        return cut

    def _place_of(self, i: int, character: int) -> int:
        """The byte at which a character of a document begins."""
        at = self._starts[i]
        for block in self._blocks(at, self._ends[i]):
            text = block.decode(*_CODEC)
            if character < len(text):
                return at + len(text[:character].encode(*_CODEC))
            character -= len(text)
            at += len(block)
        return at

    def _last(self, separator: bytes, start: int, end: int) -> int:
        """The last position of `separator`, one byte, in a range of the file, or -1."""
        while end > start:
            begin = max(start, end - _READ_AT_ONCE)
            found = self._file.read(begin, end).rfind(separator)
            if found >= 0:
                return begin + found
            end = begin
        return -1

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        """A range of the file, in blocks of whole characters."""
        while start < end:
            block = self._file.read(start, min(start + _READ_AT_ONCE, end))
            if start + len(block) < end:
                block = _whole(block)
            start += len(block)
            yield block


class DocumentParts(Iterable[str]):
    """Documents in parts of at most `longest` bytes (see `Documents.parts`); it may be read several times.

    The tokenizers library collects 256 of them before it counts words.
    """

    def __init__(self, *documents: Documents, longest: int = 2**16) -> None:
        self._documents, self._longest = documents, longest

    def __iter__(self) -> Iterator[str]:
        for documents in self._documents:
            for i in range(len(documents)):
                yield from documents.parts(i, self._longest)


def validation_rows(count: int, share: float, seed: int) -> set[int]:
    """Which of `count` records are for validation: a share of them, at least one and not all, drawn by `seed`."""
    if count < 2:
        raise DataError(
            "one record cannot be split in a part to learn from and one to test on; give more, or a file for each"
        )
    order: MutableSequence[int] = array("q", range(count))
    random.Random(derive_seed(seed, Purpose.VALIDATION)).shuffle(order)
    return set(order[: min(max(1, round(share * count)), count - 1)])


def drawn_parts(count: int, k: int, seed: int) -> list[int]:
    """For each of `count` groups of records the number of its part, 0 to k - 1, drawn by `seed`."""
    order, parts = list(range(count)), [0] * count
    random.Random(derive_seed(seed, Purpose.FOLD)).shuffle(order)
    for place, number in enumerate(order):
        parts[number] = place % k
    return parts


def _spans(spans: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Starts and ends of the spans that are not empty."""
    kept = [(start, end) for start, end in spans if start < end]
    return [start for start, _ in kept], [end for _, end in kept]


def _whole(block: bytes) -> bytes:
    """The block without its last character, which may be incomplete."""
    end = len(block) - 1
    while block[end] & 0xC0 == 0x80:
        end -= 1
    return block[:end]


def _cut(text: str) -> int:
    """Where to cut a text, in its second half: before a line break, else after a word, else at its end."""
    at = len(text)
    while (at := text.rfind("\n", len(text) // 2, at)) > 0:
        if not text[at - 1].isspace():
            return at
    for at in range(len(text) - 1, len(text) // 2, -1):
        if text[at - 1].isalpha() and not text[at].isalpha():
            return at
    return len(text)
