"""Numbers in a scratch file, read as a tensor."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from proxlm.data.scratch import ScratchFile

_CODES = {torch.int32: "i", torch.bool: "b"}
_AT_ONCE = 2**18


class NumbersOnDisk:
    """Numbers appended one after another, then read as one memory-mapped tensor.

    Args:
        dtype: torch.int32 or torch.bool.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._file = ScratchFile()
        self._waiting = array(_CODES[dtype])
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._waiting)

    def extend(self, numbers: Iterable[int]) -> None:
        """Append numbers."""
        self._waiting.extend(numbers)
        if len(self._waiting) >= _AT_ONCE:
            self._flush()

    def tensor(self) -> Tensor:
        """All numbers, [n]; a change of the tensor is not written to disk. Nothing may be appended after this."""
        self._flush()
        if not len(self):
            return torch.empty(0, dtype=self.dtype)
        pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(pages, dtype=self.dtype)

    def _flush(self) -> None:
        self._file.append(memoryview(self._waiting).cast("B"))
        self._written += len(self._waiting)
        self._waiting = array(self._waiting.typecode)


class RowsOnDisk:
    """Rows of equal width appended one after another, then read as one memory-mapped tensor.

    Args:
        width: Numbers in a row.
        dtype: Of any floating-point or integer kind.
    """

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype
        self._file = ScratchFile()

    def extend(self, rows: Tensor) -> None:
        """Append rows [n, width]."""
        if rows.numel():
            values = rows.detach().to("cpu", self.dtype).contiguous()
            self._file.append(values.view(torch.uint8).numpy().data.cast("B"))

    def tensor(self) -> Tensor:
        """All rows [n, width]; a change of the tensor is not written to disk. Nothing may be appended after this."""
        if not self._file.size:
            return torch.empty(0, self.width, dtype=self.dtype)
        pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(pages, dtype=self.dtype).view(-1, self.width)
