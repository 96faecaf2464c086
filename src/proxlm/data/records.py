"""Read records and text from files, with errors that name the file and the line."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxlm.errors import DataError


@dataclass(frozen=True)
class Record:
    """One record of a data file, and the line (from 1) on which it begins."""

    fields: dict[str, Any]
    line: int


def read_records(path: str | Path) -> list[Record]:
    """All records of a .jsonl, .json, .csv, .tsv or .txt file; each kind may end in .gz.

    .jsonl: an object per line; .json: one list of objects; .csv and .tsv: the first row names the fields, and
    every value is text; .txt: each non-empty line is the record {"text": line}. Empty lines, a byte order
    mark and CRLF line ends are no part of the data. Raises DataError, with file and line, for anything else.
    """
    path = Path(path).expanduser()
    kind = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    parse = _PARSERS.get(kind.lower())
    if parse is None:
        raise DataError(
            f"{path}: unknown kind of file; use {', '.join(_PARSERS)} (each may be compressed: .gz)"
            if not path.is_dir()
            else f"{path}: is a folder, but a file is needed"
        )
    records = list(parse(path, read_lines(path)))
    if not records:
        raise DataError(f"{path}: the file holds no records")
    return records


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file (.gz is unpacked), without line ends, byte order mark and CR before LF."""
    lines = _read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not"
                " UTF-8; save the file as UTF-8"
            ) from error
    return decoded


def missing_field(path: str | Path, record: Record, wanted: str, key: str) -> DataError:
    """The error for a record without field `wanted`; `key` is the setting that asks for it."""
    near = difflib.get_close_matches(wanted, record.fields, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    present = ", ".join(record.fields) or "none"
    return DataError(f'{path}:{record.line}: no field "{wanted}"; {hint}fields here: {present} (set {key})')


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, but a file is needed") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip data is cut off or damaged ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _parse_jsonl(path: Path, lines: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            raise _json_error(path, number, error) from error
        yield _json_record(path, number, value, line)


def _parse_json(path: Path, lines: Sequence[str]) -> Iterator[Record]:
    """Steps through the list by hand: json.loads does not say where each object began."""
    text = "\n".join(lines)
    if not text.strip():
        return
    position, line = _skip_space(text, 0), 1
    if text[position] != "[":
        raise DataError(f"{path}: must hold a list of objects; with an object per line, name it .jsonl")
    position, counted = _skip_space(text, position + 1), 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _json_error(path, getattr(error, "lineno", line), error) from error
        yield _json_record(path, line, value, text[position:end])
        position = _skip_space(text, end)
        follows = text[position : position + 1]
        if follows == ",":
            position = _skip_space(text, position + 1)
        elif follows != "]":
            raise DataError(f"{path}:{text.count(chr(10), 0, end) + 1}: not valid JSON: a , or ] must follow")
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        raise DataError(f"{path}:{text.count(chr(10), 0, rest) + 1}: more text after the end of the list")


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a second value for a key would otherwise hide the first in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice}" stands twice in one object')
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _json_error(path: Path, line: int, error: Exception) -> DataError:
    if isinstance(error, RecursionError):
        return DataError(f"{path}:{line}: not valid JSON: nested too deeply")
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{path}:{line}: not valid JSON: {error.msg} (column {error.colno})")
    return DataError(f"{path}:{line}: not valid JSON: {error}")


def _json_record(path: Path, line: int, value: Any, source: str) -> Record:
    if not isinstance(value, dict):
        shown = json.dumps(value, ensure_ascii=True)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        raise DataError(f"{path}:{line}: a record must be an object {{...}}, not {shown}")
    # Only an escape can bring half a character into a text; no tokenizer could encode it later.
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}:{line}: a \\uD... escape stands for half a character") from error
    return Record(value, line)


def _parse_csv(path: Path, lines: Sequence[str], delimiter: str = ",") -> Iterator[Record]:
    reader = csv.reader(io.StringIO("\n".join(lines), newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = row
                if "" in header or len(set(header)) < len(header):
                    raise DataError(f"{path}:{begins}: the header needs a different name for each column")
            elif len(row) != len(header):
                raise DataError(
                    f"{path}:{begins}: {len(row)} values, but the header has {len(header)} columns"
                )
            else:
                yield Record(dict(zip(header, row, strict=True)), begins)
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not valid CSV: {error}; .jsonl takes any text") from error


def _parse_tsv(path: Path, lines: Sequence[str]) -> Iterator[Record]:
    return _parse_csv(path, lines, "\t")


def _parse_txt(_path: Path, lines: Sequence[str]) -> Iterator[Record]:
    return (Record({"text": line}, number) for number, line in enumerate(lines, 1) if line.strip())


_PARSERS: Mapping[str, Callable[[Path, Sequence[str]], Iterator[Record]]] = {
    ".jsonl": _parse_jsonl,
    ".json": _parse_json,
    ".csv": _parse_csv,
    ".tsv": _parse_tsv,
    ".txt": _parse_txt,
}
