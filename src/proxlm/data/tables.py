"""Records from tables: Parquet files, data sets saved by Hugging Face's `datasets`, and data sets on the hub.

The line of a record is its row, from 1. Local files need only pyarrow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from proxlm.config.paths import HUB_PREFIX
from proxlm.data.arrow_json import Decode, json_decoder
from proxlm.data.fields import without_nulls
from proxlm.data.lines import shown_size
from proxlm.data.skipped import Record, Skipped
from proxlm.data.table_sizes import LARGEST_ROW, decoded_size, parts_of
from proxlm.data.table_trial import try_table
from proxlm.errors import BadRecordError, DataError
from proxlm.files import NotRegularFileError, open_regular, read_regular
from proxlm.text import listed, reason_of, system_reason
from proxlm.user_code import parse_reference

# A schema, and batches of rows.
Table = tuple[Any, Iterable[Any]]
_READ_AHEAD = 2**20
# Of a Parquet file, at most so many rows, and about so many bytes as it stores; they may be more in memory.
_ROWS_AT_ONCE, _STORED_AT_ONCE = 256, 2**25
_LARGEST_STATE = 2**26
# What pyarrow raises for damaged files beside its own: sizes beyond all memory, names of columns that are not UTF-8.
_DAMAGE = (OSError, MemoryError, UnicodeDecodeError)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){0,2}")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")


def is_hub_name(name: str | Path) -> bool:
    """Whether the name is of a data set on the hub: hf:OWNER/NAME, hf:OWNER/NAME/CONFIGURATION:SPLIT."""
    return str(name).startswith(HUB_PREFIX)


def is_data_set(name: str, texts: list[Path]) -> bool:
    """Whether a path is a data set, not a file or a folder of texts. texts: the text files in the folder."""
    path = Path(name)
    if is_hub_name(name) or split_of_folder(path) is not None:
        return True
    if not os.path.isdir(path):
        return path.suffix.lower() == ".parquet"
    saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    # The hub puts a README.md beside a data set's tables.
    return saved or (all(t.name == "README.md" for t in texts) and any(path.rglob("*.parquet")))


def split_of_folder(path: Path) -> tuple[Path, str] | None:
    """The folder and the split in FOLDER:SPLIT; None if there is no such folder, or a file of the whole name."""
    named = parse_reference(str(path))
    if named is None or os.path.exists(path) or not os.path.isdir(named.path):
        return None
    return Path(named.path), named.name


def read_parquet(path: Path, skipped: Skipped) -> Iterator[Record]:
    """The rows of a Parquet file."""
    _arrow()
    import pyarrow.parquet

    def table(source: BinaryIO) -> Table:
        file = pyarrow.parquet.ParquetFile(source, buffer_size=_READ_AHEAD)
        size = os.fstat(source.fileno()).st_size
        rows = max(1, min(_ROWS_AT_ONCE, _STORED_AT_ONCE * file.metadata.num_rows // size))
        return file.schema_arrow, file.iter_batches(batch_size=rows, use_threads=False)

    yield from _read(path, table, "a Parquet file", skipped)


def read_folder(folder: Path, split: str, skipped: Skipped) -> Iterator[Record]:
    """The rows of a data set in a folder, file by file."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        if split not in splits:
            raise _which_split(folder, splits)
        folder, split = folder / split, ""
    if (folder / "state.json").is_file():
        if split:
            raise DataError(f"{folder}: this data set has no splits; leave out :{split}")
        for file in _saved_files(folder):
            yield from _read_arrow(file, skipped)
        return
    for file in _parquet_files(folder, split):
        yield from read_parquet(file, skipped)


def read_hub(name: str) -> Iterator[Record]:
    """The rows of a data set on the hub, streamed; no code that comes with the data set is run."""
    full, _, split = name.removeprefix(HUB_PREFIX).partition(":")
    if not _HUB_NAME.fullmatch(full):
        raise DataError(f"{name}: not the name of a data set; write hf:OWNER/NAME:SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f'{name}: data sets on the hub need the package datasets: pip install "proxlm[datasets]"'
        ) from error
    parts = full.split("/")
    configuration = parts[2] if len(parts) == 3 else None
    try:
        rows = datasets.load_dataset(
            "/".join(parts[:2]), configuration, split=split or "train", streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Record(without_nulls(row, f"{name}:{number}"), number, name)
    except Exception as error:  # datasets raises many kinds, of its own and of what it calls
        raise DataError(f"{name}: cannot be read from the hub: {reason_of(error)}") from error


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a data set saved with save_to_disk; they must be in its folder."""
    state = folder / "state.json"
    try:
        names = [
            entry["filename"] for entry in json.loads(read_regular(state, _LARGEST_STATE))["_data_files"]
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{state}: damaged; save the data set again with save_to_disk") from error
    for name in names:
        plain = isinstance(name, str) and name.isprintable() and name not in ("", "..")
        if not plain or Path(name).name != name:
            raise DataError(f"{state}: names the file {name!a}, which is not in the folder")
        if not os.path.lexists(folder / name):
            raise DataError(f"{folder / name}: no such file, but the data set's state.json names it")
    return [folder / name for name in names]


def _read_arrow(path: Path, skipped: Skipped) -> Iterator[Record]:
    """The rows of one of the files that save_to_disk has written."""
    arrow = _arrow()

    def table(source: BinaryIO) -> Table:
        stream = arrow.ipc.open_stream(source)
        return stream.schema, map(_sound, stream)

    yield from _read(path, table, "an Arrow file", skipped)


def _read(path: Path, table: Callable[[BinaryIO], Table], kind: str, skipped: Skipped) -> Iterator[Record]:
    """The rows of a file that `table` opens."""
    try:
        with open_regular(path) as source:
            try_table(str(path), os.fstat(source.fileno()).st_size, lambda: table(source)[1])
            source.seek(0)
            schema, batches = table(source)
            _check_columns(path, schema.names)
            yield from _rows(path, schema, batches, skipped)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except NotRegularFileError as error:
        raise DataError(f"{path}: cannot be read: {system_reason(error)}") from error
    except (_arrow().ArrowException, *_DAMAGE) as error:
        raise DataError(f"{path}: not {kind}, or damaged: {reason_of(error)}") from error


def _sound(batch: Any) -> Any:
    """The batch, if its offsets lie within it; pyarrow reads a damaged one beyond its end, and aborts the process.

    Raises ArrowException. A text that is not UTF-8 is its row's problem, but within a list or a struct the file's.
    """
    arrow = _arrow()
    for column in batch.columns:
        try:
            column.validate(full=True)
        except arrow.ArrowInvalid as error:
            if not arrow.types.is_string(column.type) or "UTF8" not in str(error):
                raise
    return batch


def _parquet_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of one split; they must be in one folder."""
    every = sorted(folder.rglob("*.parquet"))
    if not every:
        raise DataError(f"{folder}: is a folder, but a file is needed, or a data set (Parquet, save_to_disk)")
    splits = {file: found[1] if (found := _SHARD.fullmatch(file.stem)) else file.stem for file in every}
    names = sorted(set(splits.values()))
    if split not in names and (split or len(names) > 1):
        raise _which_split(folder, names)
    files = [file for file in every if not split or splits[file] == split]
    parents = sorted({file.parent for file in files})
    if len(parents) > 1:
        raise DataError(
            f"{folder}: holds Parquet files in several folders; name one of {listed(map(str, parents))}"
        )
    return files


def _which_split(folder: Path, splits: list[str]) -> DataError:
    return DataError(f"{folder}: the data set has the splits {listed(splits)}; write {folder}:SPLIT")


def _rows(path: Path, schema: Any, batches: Any, skipped: Skipped) -> Iterator[Record]:
    first, decode = 1, json_decoder(schema)
    for part in (part for batch in batches for part in parts_of(batch)):
        for i, row in enumerate(_as_dicts(part)):
            where = f"{path}:{first + i}"
            try:
                yield Record(_fields(row, decode, where), first + i, str(path))
            except BadRecordError as error:
                skipped.bad(error, str(path), first + i, "")
        first += len(part)


class _TooLargeError(Exception):
    """A row of more than LARGEST_ROW bytes."""


def _fields(row: dict[str, Any] | Exception, decode: Decode | None, where: str) -> dict[str, Any]:
    if isinstance(row, Exception):
        if isinstance(row, _TooLargeError):
            raise BadRecordError(f"{where}: {row}", "line too long")
        kind = "not UTF-8" if isinstance(row, UnicodeDecodeError) else "unreadable value"
        raise BadRecordError(f"{where}: {kind}: {reason_of(row)}", kind)
    try:
        return without_nulls(decode(row) if decode else row, where)
    except ValueError as error:
        raise BadRecordError(f"{where}: {reason_of(error)}", "not valid JSON") from error


def _as_dicts(batch: Any) -> list[dict[str, Any] | Exception]:
    if len(batch) == 1 and decoded_size(batch) > LARGEST_ROW:
        return [_TooLargeError(f"the row is longer than {shown_size(LARGEST_ROW)}; cut it into several")]
    try:
        return list(batch.to_pylist(maps_as_pydicts="strict"))
    except (ValueError, OverflowError, KeyError):  # texts that are not UTF-8, times beyond Python's
        return [_as_dict(batch.slice(i, 1)) for i in range(len(batch))]


def _as_dict(row: Any) -> dict[str, Any] | Exception:
    try:
        return dict(row.to_pylist(maps_as_pydicts="strict")[0])
    except (ValueError, OverflowError, KeyError) as error:
        return error


def _check_columns(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name; each needs its own")


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError('Parquet and saved data sets need pyarrow: pip install "proxlm[parquet]"') from error
    return pyarrow
