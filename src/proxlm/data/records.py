"""Records of files, read one after another, with errors that name the file and the line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from proxlm.data.in_memory import InMemoryRecords
from proxlm.data.json_list import DECODER, JsonList, json_reason, nested_too_deeply
from proxlm.data.lines import LONGEST_LINE, byte_lines, shown_size, text_lines
from proxlm.data.reasoning_gym import is_gym_name, read_tasks
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tables import is_hub_name, read_folder, read_hub, read_parquet, split_of_folder
from proxlm.errors import BadRecordError, DataError
from proxlm.text import shown

Source = str | Path | InMemoryRecords
"""Where records come from: a file, a data set, or records in memory."""


def iter_records(path: Source, skipped: Skipped | None = None) -> Iterator[Record]:
    """The records of a .jsonl, .json, .csv, .tsv or .txt file (each may end in .gz), of Parquet, or of a data set.

    .jsonl and .ndjson: an object per line; .json: one list of objects; .csv and .tsv: the first row names the
    fields, and every value is text; .txt: each non-empty line is the record {"text": line}. Empty lines, a byte order
    mark and CRLF line ends are not part of the data. A null in an object is the same as no field (fields.py). A
    folder is a data set saved by Hugging Face's `datasets`, or one of Parquet files; FOLDER:SPLIT names one of
    several splits; hf:NAME:SPLIT is a data set on the hub; reasoning-gym:TASK generates tasks.

    At most one record of a text file, or one batch of rows of a table, is in memory.

    Args:
        path: The file or data set.
        skipped: Receives bad records; by default the first one raises its error.

    Raises:
        DataError: With file and line: a bad record, a file that cannot be read, or one that holds no records. An
            error after which the rest of a file cannot be read is raised whatever `skipped` says.
    """
    skipped = skipped if skipped is not None else Skipped()
    found = False
    for record in _source(path)(skipped):
        found = True
        yield record
    if not found:
        if skipped.first:
            raise DataError(f"{path}: no record can be used; the first bad one: {skipped.first_in(path)}")
        raise DataError(f"{path}: the file holds no records")


def _source(name: Source) -> Callable[[Skipped], Iterator[Record]]:
    """The function that reads a file or data set. Raises DataError if its kind is unknown."""
    if isinstance(name, InMemoryRecords):
        return name.records
    if is_gym_name(name):
        return lambda _: read_tasks(str(name))
    if is_hub_name(name):
        return lambda _: read_hub(str(name))
    path = Path(name)
    if "\0" in str(path):
        raise DataError(f"{str(path)!a}: not a path")
    if os.path.isdir(path):
        return lambda skipped: read_folder(path, "", skipped)
    if (folder_and_split := split_of_folder(path)) is not None:
        folder, split = folder_and_split
        return lambda skipped: read_folder(folder, split, skipped)
    kind = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    if kind == ".parquet" and path.suffix.lower() != ".gz":
        return lambda skipped: read_parquet(path, skipped)
    parse = _PARSERS.get(kind)
    if parse is None:
        raise DataError(
            f"{path}: unknown kind of file; use {', '.join(_PARSERS)} (each may be compressed: .gz) or .parquet"
        )
    return lambda skipped: parse(path, skipped)


def _parse_jsonl(path: Path, skipped: Skipped) -> Iterator[Record]:
    for number, line in text_lines(path, skipped):
        if not line.strip():
            continue
        try:
            record = _json_record(path, number, _decoded(path, number, line), line)
        except BadRecordError as error:
            skipped.bad(error, str(path), number, line)
            continue
        yield record


def _decoded(path: Path, number: int, line: str) -> Any:
    try:
        return DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        column = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = f"{path}:{number}: not valid JSON: {json_reason(error)}{column}"
        raise BadRecordError(reason, "not valid JSON") from error


def _parse_json(path: Path, skipped: Skipped) -> Iterator[Record]:
    for element in JsonList(path):
        try:
            if element.problem:
                reason = f"{path}:{element.line}: not valid JSON: {element.problem}"
                raise BadRecordError(reason, "not valid JSON")
            if not element.source.isascii():
                _check_bytes(path, element.line, element.source, "the record")
            record = _json_record(path, element.line, element.value, element.source)
        except BadRecordError as error:
            skipped.bad(error, str(path), element.line, element.source)
            continue
        yield record


def _json_record(path: Path, line: int, value: Any, source: str) -> Record:
    if not isinstance(value, dict):
        found = shown(json.dumps(value, ensure_ascii=True), 40)
        raise BadRecordError(
            f"{path}:{line}: a record must be an object {{...}}, not {found}", "not an object"
        )
    if nested_too_deeply(value, source):
        raise BadRecordError(f"{path}:{line}: not valid JSON: nested too deeply", "not valid JSON")
    # Only an escape can put half a character into a text; no tokenizer could encode it later.
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            reason = f"{path}:{line}: a \\uD... escape stands for half a character"
            raise BadRecordError(reason, "half a character") from error
    return Record(value, line, str(path))


def _check_bytes(path: Path, line: int, text: str, what: str) -> None:
    """Raise BadRecordError if `text` has surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = (
            f"{path}:{line}: {what} holds a byte (0x{ord(text[error.start]) & 0xFF:02x}) that is not UTF-8"
        )
        raise BadRecordError(f"{reason}; save the file as UTF-8", "not UTF-8") from error


class _Rows:
    """The lines of a CSV file for csv.reader; they can be given back if a row turns out to be invalid.

    Otherwise an unclosed quotation mark would swallow every record after it.
    """

    def __init__(self, path: Path, skipped: Skipped) -> None:
        self._lines = self._split(byte_lines(path, skipped))
        self._back: list[tuple[int, str]] = []  # given back, in reverse order
        self.row: list[tuple[int, str]] = []
        self._size = 0

    def __iter__(self) -> _Rows:
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._lines)
        self.row.append(line)
        self._size += len(line[1])
        if self._size > LONGEST_LINE:
            raise csv.Error(f"the row is longer than {shown_size(LONGEST_LINE)}")
        return line[1]

    def begin_row(self) -> None:
        self.row, self._size = [], 0

    def give_back(self) -> None:
        """Give the lines of this row back, except the first."""
        self._back += reversed(self.row[1:])

    @staticmethod
    def _split(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
        number = 0
        for _, line in lines:
            # CR alone ends a line too, as in the csv module.
            *ended, last = line.decode(errors="surrogateescape").split("\r")
            for part in [*(f"{text}\r" for text in ended), f"{last}\n"]:
                number += 1
                yield number, part


def _parse_csv(path: Path, skipped: Skipped, delimiter: str = ",") -> Iterator[Record]:
    rows = _Rows(path, skipped)
    reader = csv.reader(rows, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        rows.begin_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line, raw = rows.row[0]
            bad = BadRecordError(
                f"{path}:{line}: not valid CSV: {error}; .jsonl takes any text", "not valid CSV"
            )
            if header is None:
                raise bad from error
            skipped.bad(bad, str(path), line, raw)
            rows.give_back()
            continue
        if not values:
            continue
        line, raw = rows.row[0][0], "".join(text for _, text in rows.row)
        if header is None:
            header = _header(path, line, values)
            continue
        try:
            record = _csv_record(path, line, header, values)
        except BadRecordError as error:
            skipped.bad(error, str(path), line, raw)
            continue
        yield record


def _header(path: Path, line: int, names: list[str]) -> list[str]:
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{path}:{line}: the header needs a different name for each column")
    _check_bytes(path, line, "".join(names), "the header")
    return names


def _csv_record(path: Path, line: int, header: list[str], values: list[str]) -> Record:
    if len(values) != len(header):
        reason = f"{path}:{line}: {len(values)} values, but the header has {len(header)} columns"
        raise BadRecordError(reason, "wrong number of values")
    for name, value in zip(header, values, strict=True):
        if not value.isascii():
            _check_bytes(path, line, value, f'field "{shown(name)}"')
    return Record(dict(zip(header, values, strict=True)), line, str(path))


def _parse_tsv(path: Path, skipped: Skipped) -> Iterator[Record]:
    return _parse_csv(path, skipped, "\t")


def _parse_txt(path: Path, skipped: Skipped) -> Iterator[Record]:
    for number, line in text_lines(path, skipped):
        if line.strip():
            yield Record({"text": line}, number, str(path))


_PARSERS: Mapping[str, Callable[[Path, Skipped], Iterator[Record]]] = {
    ".jsonl": _parse_jsonl,
    ".ndjson": _parse_jsonl,
    ".json": _parse_json,
    ".csv": _parse_csv,
    ".tsv": _parse_tsv,
    ".txt": _parse_txt,
}
