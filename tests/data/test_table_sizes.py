"""Small files that stand for gigabytes are read in small parts, or refused; others are read as before."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxlm.data.records import iter_records
from proxlm.data.skipped import Skipped
from proxlm.data.table_sizes import LARGEST_ROW, PARTS_OF, decoded_size, parquet_reading, parts_of
from proxlm.errors import BadRecordError, DataError

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


@pytest.mark.parametrize(
    ("column", "options", "rows", "as_indices"),
    [
        (pa.array(["some text"] * 500), {}, 256, []),
        (repeated("x" * 4 * MIB, 500), {}, 63, []),
        (pa.array(["x" * 4 * MIB] * 40), {"use_dictionary": False}, 63, []),
        (
            pa.array(["x" * 4 * MIB] * 40),
            {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}},
            63,
            [],
        ),
        (in_lists(repeated("x" * MIB, 5000), [5000]), {}, 256, ["a.list.element"]),
        (pa.array([[f"{i}"] * 3 for i in range(500)]), {}, 256, []),
    ],
)
def test_how_many_rows_are_read_at_a_time(
    tmp_path: Path, column: Any, options: dict[str, Any], rows: int, as_indices: list[str]
) -> None:
    with open(stored(tmp_path / "a.parquet", pa.table({"a": column}), **options), "rb") as source:
        reading = parquet_reading(pq.ParquetFile(source), source, "a.parquet")
    assert abs(reading.rows - rows) <= 1
    assert reading.as_indices == as_indices


READ = """
import sys
from itertools import islice
import pyarrow
from proxlm.data.records import iter_records
count = sum(len(record.fields["text"]) for record in islice(iter_records(sys.argv[1]), 100))
print(count, pyarrow.default_memory_pool().max_memory())
"""


def test_a_file_of_a_kilobyte_that_stands_for_gigabytes_is_read_in_little_memory(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.parquet", pa.table({"text": repeated("x" * 4 * MIB, 2000)}))
    assert path.stat().st_size < 1000
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    read, most = map(int, done.stdout.split())
    assert read == 100 * 4 * MIB
    assert most < 600 * MIB  # 2,000 rows are 7.8 GiB, 256 rows 1 GiB


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


def test_a_file_that_says_it_holds_a_thousand_times_what_it_stores_is_refused(tmp_path: Path) -> None:
    count = 150_000_000
    column = in_lists(pa.nulls(count, pa.int8()), [count])
    path = stored(tmp_path / "a.parquet", pa.table({"a": column}), use_dictionary=False)
    assert path.stat().st_size < MIB
    with pytest.raises(
        DataError, match=r'a\.parquet: column "a.*" holds 1\.\d GiB in \d+ bytes; such a file'
    ):
        list(iter_records(path, Skipped(skip=True)))
