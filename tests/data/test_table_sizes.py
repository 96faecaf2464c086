"""How large rows are in memory, and that they are made objects in small parts; test_table_trial.py: whole files."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.data.table_sizes import LARGEST_ROW, PARTS_OF, decoded_size, parts_of
from proxlm.errors import BadRecordError

MIB = 2**20


def repeated(value: str, count: int) -> Any:
    """The value so many times, stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def in_lists(values: Any, lengths: list[int]) -> Any:
    return pa.ListArray.from_arrays(np.cumsum([0, *lengths]), values)


def stored(path: Path, table: Any, **options: Any) -> Path:
    pq.write_table(table, path, compression="zstd", **options)
    return path


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (pa.array(["abc", None, "你好"]), 9),
        (pa.array([b"abc", b""]), 3),
        (pa.array(["abc", "d"], pa.large_string()), 4),
        (pa.array(["abc", "d"], pa.string_view()), 4),
        (repeated("abcd", 10), 40),
        (pa.DictionaryArray.from_arrays(pa.array([0, None, 1]), pa.array(["ab", "c"])), 3),
        (pa.array([1, 2], pa.int64()), 16),
        (pa.array([1, 2], pa.int8()), 16),
        (pa.array([b"abcdefghijkl"], pa.binary(12)), 12),
        (pa.array([[1, 2], None, [3]]), 24 + 24),
        (in_lists(repeated("abcd", 5), [2, 3]), 16 + 20),
        (pa.array([{"a": "xy", "b": 1}, None]), 2 + 16),
        (pa.array([[("k", "value")]], pa.map_(pa.string(), pa.string())), 6),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), 16 + 32),
        (pa.array([True, None]), 16),
        (pa.nulls(3), 24),
    ],
)
def test_the_size_of_rows_in_memory(array: Any, size: int) -> None:
    batch = pa.record_batch({"a": array})
    assert decoded_size(batch) == size
    assert sum(decoded_size(batch.slice(i, 1)) for i in range(len(batch))) == size


def test_a_batch_is_cut_until_its_parts_are_small() -> None:
    batch = pa.record_batch({"a": repeated("x" * (PARTS_OF // 4), 11), "i": pa.array(range(11))})
    parts = list(parts_of(batch))
    assert [i for part in parts for i in part.column("i").to_pylist()] == list(range(11))
    assert all(decoded_size(part) <= PARTS_OF for part in parts)
    assert len(parts) == 4
    whole = pa.record_batch({"i": pa.array(range(1000))})
    assert [len(part) for part in parts_of(whole)] == [1000]


def saved(folder: Path, table: Any) -> Path:
    folder.mkdir()
    with pa.OSFile(str(folder / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}]}))
    return folder


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_row_over_the_limit_is_named_and_others_are_still_read(tmp_path: Path, kind: str) -> None:
    count = LARGEST_ROW // MIB
    table = pa.table({"text": in_lists(repeated("x" * MIB, count + 3), [1, count + 1, 1])})
    path = saved(tmp_path / "a", table) if kind == "saved" else stored(tmp_path / "a.parquet", table)
    skipped = Skipped(skip=True)
    assert [record.line for record in iter_records(path, skipped)] == [1, 3]
    assert skipped.counts == {"line too long": 1}
    with pytest.raises(BadRecordError, match=r":2: the row is longer than 64 MiB; cut it into several"):
        list(islice(iter_records(path), 3))
