"""How large a table's rows are in memory. A column stores a value that repeats once, and compresses it.

So rows are read a few at a time, and are made Python objects in parts of PARTS_OF bytes. A row may have LARGEST_ROW
bytes, as a line of a text file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxlm.data.lines import LONGEST_LINE

LARGEST_ROW = LONGEST_LINE
PARTS_OF = 2**24
_INDEX = 8


def parts_of(batch: Any) -> Iterator[Any]:
    """The batch in parts of at most PARTS_OF bytes in memory, or of one row."""
    if len(batch) <= 1 or decoded_size(batch) <= PARTS_OF:
        yield batch
        return
    half = len(batch) // 2
    yield from parts_of(batch.slice(0, half))
    yield from parts_of(batch.slice(half))


def decoded_size(batch: Any) -> int:
    """About how many bytes the rows of a batch are as Python objects, at least."""
    return sum(_size(column) for column in batch.columns)


def _size(array: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _size(array.storage)
    if pa.types.is_dictionary(kind):
        if _is_text(kind.value_type):
            used = pc.value_counts(array.indices.drop_null())
            lengths = pc.binary_length(pc.take(array.dictionary, used.field("values")))
            return _total(pc.multiply(lengths, used.field("counts")))
        return len(array) * _size(array.dictionary)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _size_of_views(array)
    if _is_text(kind):
        return _total(pc.binary_length(array))
    if pa.types.is_struct(kind):
        return sum(_size(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        offsets = array.offsets
        start, end = offsets[0].as_py(), offsets[-1].as_py()
        return _size(array.keys[start:end]) + _size(array.items[start:end])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _INDEX * len(array) + _size(array.flatten())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return _total(array.sizes) * _average(array.values)
    if pa.types.is_run_end_encoded(kind):
        return len(array) * _average(array.values)
    try:
        return len(array) * max(_INDEX, kind.byte_width)
    except ValueError:
        return _INDEX * len(array)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    t = pa.types
    kinds = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)
    return any(is_kind(kind) for is_kind in kinds)


def _size_of_views(array: Any) -> int:
    """Bytes of texts that are places in shared buffers: the first 4 of a view's 16 bytes are its length."""
    import numpy as np

    views = np.frombuffer(array.buffers()[1], dtype=np.int32).reshape(-1, 4)
    lengths = views[array.offset : array.offset + len(array), 0].astype(np.int64)
    return int(lengths[np.asarray(array.is_valid())].sum())


def _total(lengths: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(lengths).as_py() or 0)


def _average(values: Any) -> int:
    """Bytes of a value, rounded up."""
    return -(-_size(values) // max(1, len(values)))
