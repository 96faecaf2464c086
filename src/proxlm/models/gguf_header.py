"""The header of a GGUF file, read with a bound on everything that it can ask for.

A header counts what follows: settings, elements of arrays, tensors, bytes. Libraries that read it believe the counts,
and one that lies makes them fill the memory. Here each is compared with the bytes that are there before anything of
that size is made, so that a file that passes can be read by them.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from proxlm.errors import ModelError
from proxlm.files import open_regular
from proxlm.text import shown, system_reason

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# The widths of values in bytes, and how struct reads them; 8 is a text and 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# Vocabularies are the largest arrays: 262,144 tokens with scores and types, and as many merges twice over.
_MOST_ELEMENTS = 4_000_000
_MOST_SETTINGS = 10_000
_MOST_TENSORS = 100_000
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1024
_LONGEST_TEXT = 2**24
_LARGEST_HEADER = 2**28


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        settings: its metadata: numbers and texts; of an array its length.
        tensors: the shape of each tensor, its last dimension first, as the file has it.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def elements(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def read_header(path: Path, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
    """The header of a GGUF file, if the whole file is what it says.

    Args:
        path: The file.
        block_sizes: Of each number that stands for a kind of weights: elements and bytes of a block.

    Raises:
        ModelError: It is no GGUF file, damaged, cut, or its counts do not fit its size; one line that names it.
    """
    try:
        with open_regular(path) as file:
            return _Reader(file, path).header(block_sizes)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {system_reason(error)}") from error


class _Reader:
    """Reads a file from its beginning, and never beyond its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = file.seek(0, 2)
        file.seek(0)
        self._elements = 0

    def header(self, block_sizes: Mapping[int, tuple[int, int]]) -> GgufHeader:
        if self._bytes(len(MAGIC), "magic") != MAGIC:
            raise self._wrong("no GGUF file: it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise self._wrong(f"version {version} of GGUF; {known} (little-endian) can be read")
        tensors, settings = (
            self._count("tensors", "Q", _MOST_TENSORS),
            self._count("settings", "Q", _MOST_SETTINGS),
        )
        found = self._settings(settings)
        shapes = self._tensors(tensors, block_sizes, found.get("general.alignment", 32))
        return GgufHeader(found, shapes)

    def _settings(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self._text("a setting's name", _LONGEST_NAME)
            if name in found:
                raise self._wrong(f"the setting {shown(name, 60)} twice")
            found[name] = self._value(name, self._number("I"))
        return found

    def _value(self, name: str, kind: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(name, _LONGEST_TEXT)
        if kind != _ARRAY:
            raise self._wrong(f"{shown(name, 60)} is of kind {kind}, which is none of GGUF's")
        kind = self._number("I")
        count = self._count(f"elements of {shown(name, 60)}", "Q", _MOST_ELEMENTS)
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise self._wrong(f"more than {_MOST_ELEMENTS:,} elements in its settings")
        if kind in _NUMBERS:
            self._skip(count * struct.calcsize(f"<{_NUMBERS[kind]}"), name)
        elif kind == _TEXT:
            for _ in range(count):
                self._skip(self._count(f"bytes of {shown(name, 60)}", "Q", _LONGEST_TEXT), name)
        else:
            raise self._wrong(
                f"{shown(name, 60)} is an array of kind {kind}; of numbers and texts can be read"
            )
        return count

    def _tensors(
        self, count: int, block_sizes: Mapping[int, tuple[int, int]], alignment: Any
    ) -> dict[str, tuple[int, ...]]:
        if type(alignment) is not int or not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
            raise self._wrong(f"general.alignment = {shown(repr(alignment), 40)}; a power of two is needed")
        shapes: dict[str, tuple[int, ...]] = {}
        ends: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            name = self._text("a tensor's name", _LONGEST_NAME)
            if name in shapes:
                raise self._wrong(f"the tensor {shown(name, 60)} twice")
            dimensions = self._count(f"dimensions of {shown(name, 60)}", "I", _MOST_DIMENSIONS)
            shape = tuple(self._number("Q") for _ in range(dimensions))
            kind, offset = self._number("I"), self._number("Q")
            if kind not in block_sizes:
                raise self._wrong(f"the tensor {shown(name, 60)} is of kind {kind}, which cannot be read")
            block, width = block_sizes[kind]
            if not shape or 0 in shape or shape[0] % block:
                raise self._wrong(f"the tensor {shown(name, 60)} has the shape {shape}, which none can have")
            shapes[name], ends[name] = shape, (offset, math.prod(shape) // block * width)
        start = -(-self._file.tell() // alignment) * alignment
        for name, (offset, size) in ends.items():
            end = start + offset + size
            if end > self._size:
                raise self._wrong(
                    f"cut or damaged: the tensor {shown(name, 60)} would end at byte {end:,}, the file has"
                    f" {self._size:,}; download it again"
                )
        expected = 0  # each begins right behind the one before it, as llama.cpp demands, too
        for name, (offset, size) in ends.items():
            if offset != expected:
                raise self._wrong(
                    f"damaged: the tensor {shown(name, 60)} begins at byte {offset:,} of the tensors, not at"
                    f" {expected:,} behind the one before it; download it again"
                )
            expected += -(-size // alignment) * alignment
        return shapes

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}"), "a number"))[0]

    def _count(self, what: str, form: str, most: int) -> int:
        count: int = self._number(form)
        if count > most:
            raise self._wrong(f"damaged: {count:,} {what}, where {most:,} are the most")
        return count

    def _text(self, what: str, longest: int) -> str:
        raw = self._bytes(self._count(f"bytes of {shown(what, 60)}", "Q", longest), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._wrong(f"damaged: {shown(what, 60)} is no UTF-8") from None

    def _bytes(self, count: int, what: str) -> bytes:
        self._check(count, what)
        return self._file.read(count)

    def _skip(self, count: int, what: str) -> None:
        self._check(count, what)
        self._file.seek(count, 1)

    def _check(self, count: int, what: str) -> None:
        end = self._file.tell() + count
        if end > self._size:
            raise self._wrong(f"cut or damaged: it ends within {shown(what, 60)}; download it again")
        if end > _LARGEST_HEADER:
            raise self._wrong(f"a header of more than {_LARGEST_HEADER >> 20} MiB")

    def _wrong(self, why: str) -> ModelError:
        return ModelError(f"{self._path}: {why}")
