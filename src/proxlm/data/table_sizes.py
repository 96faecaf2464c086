"""How large a table's rows are in memory: a file of a few hundred bytes can stand for gigabytes.

A column stores a value that repeats once, and compresses it. So rows are read so many at a time that even the
longest value of each column in every row fits into READ_AT_ONCE, and are made Python objects in parts of PARTS_OF
bytes. A row may have LARGEST_ROW bytes, as a line of a text file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from proxlm.data.lines import LONGEST_LINE
from proxlm.errors import DataError
from proxlm.text import shown

LARGEST_ROW = LONGEST_LINE
READ_AT_ONCE = 256 * 2**20
PARTS_OF = 2**24
ROWS_AT_ONCE = 256
# No honest file is this much smaller than what it says it holds.
_ODD_RATIO, _ODD_SIZE = 1000, 2**30
_INDEX = 8


@dataclass(frozen=True)
class Reading:
    """How a Parquet file is read: so many rows at a time, and some columns as indices into their different values."""

    rows: int
    as_indices: list[str]


def parquet_reading(file: Any, source: BinaryIO, name: str) -> Reading:
    """How to read a Parquet file within READ_AT_ONCE.

    Args:
        file: A pyarrow ParquetFile.
        source: Its bytes; their position is changed.
        name: The file, for errors.

    Raises:
        DataError: A column says that it holds over a thousand times what is stored of it, and more than 1 GiB.
    """
    metadata, as_indices = file.metadata, set()
    longest = [0] * metadata.num_columns  # of a column's values in any row, in bytes
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for i in range(metadata.num_columns):
            chunk, column = metadata.row_group(group).column(i), file.schema.column(i)
            nested = column.max_repetition_level > 0
            stored = max(chunk.total_compressed_size, 1)
            claimed = max(chunk.total_uncompressed_size, chunk.num_values * _INDEX if nested else 0)
            if claimed > _ODD_SIZE and claimed > _ODD_RATIO * stored:
                raise DataError(
                    f'{name}: column "{shown(chunk.path_in_schema)}" holds {claimed / 2**30:.1f} GiB in {stored}'
                    " bytes; such a file is not read"
                )
            value = _longest_value(chunk, source)
            average = chunk.total_uncompressed_size // max(rows, 1)
            longest[i] = max(longest[i], average, 0 if nested else value, column.length or 0)
            if nested and chunk.num_values * value > READ_AT_ONCE and _all_indices(chunk, value):
                as_indices.add(chunk.path_in_schema)
    return Reading(max(1, min(ROWS_AT_ONCE, READ_AT_ONCE // max(1, sum(longest)))), sorted(as_indices))


def _longest_value(chunk: Any, source: BinaryIO) -> int:
    """An upper bound of the bytes of a value that takes less room than that in the file; 0 if none does."""
    encodings = set(chunk.encodings)
    if chunk.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return 0
    if "DELTA_BYTE_ARRAY" in encodings:  # each value may begin as the one before it
        return int(chunk.total_uncompressed_size)
    if not encodings & {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}:
        return 0
    size = _page_size(chunk, source)
    return int(chunk.total_uncompressed_size) if size is None else size


def _page_size(chunk: Any, source: BinaryIO) -> int | None:
    """Bytes of the dictionary page once decompressed, from its header; None if that cannot be read.

    The header is a struct in Thrift's compact protocol: the page's type, then its sizes, each a field of type i32.
    """
    if not chunk.dictionary_page_offset:
        return None
    source.seek(chunk.dictionary_page_offset)
    head = source.read(16)
    numbers: list[int] = []
    at = 0
    while len(numbers) < 2 and head[at : at + 1] == b"\x15":
        value = shift = 0
        for at in range(at + 1, len(head)):  # noqa: B020  # goes on behind the field's type
            value |= (head[at] & 0x7F) << shift
            shift += 7
            if not head[at] & 0x80:
                break
        numbers.append(value >> 1)
        at += 1
    dictionary_page = 2
    return numbers[1] if len(numbers) == 2 and numbers[0] == dictionary_page else None


def _all_indices(chunk: Any, dictionary: int) -> bool:
    """Whether all values of a column are indices into its dictionary: the rest of it has no room for texts."""
    return bool(chunk.total_uncompressed_size - dictionary <= _INDEX * chunk.num_values + 2**16)


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
