"""What `proxlm data` reads: files of text as documents, files of records and data sets as records, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxlm.corpus.texts import names_of, texts_of
from proxlm.data.lines import LONGEST_LINE, shown_size, text_lines
from proxlm.data.records import iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tables import is_data_set
from proxlm.data.text import text_sources
from proxlm.errors import BadRecordError

FILE, LINE, BLANK_LINE = "file", "line", "blank_line"
_OF_RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Source:
    """A file or data set.

    Attributes:
        name: As the settings or its folder name it.
        size: Its bytes; 0 where they are not known.
    """

    name: str
    size: int


def sources_of(paths: Sequence[str], extensions: Sequence[str]) -> list[Source]:
    """The files and data sets in `paths`, each once. Raises DataError if a folder has none."""
    return [Source(name, _size(name)) for name, _ in text_sources(paths, extensions)]


def read_source(name: str, documents: str, skipped: Skipped) -> Iterator[Record]:
    """The records of a file of records or data set; of any other file the documents, as {"text": …}.

    Args:
        name: The file or data set.
        documents: What a document is: "file", "line", "blank_line".
        skipped: Receives what is bad or blank.

    Raises:
        DataError: It cannot be read.
    """
    if holds_records(name):
        yield from iter_records(name, skipped)
        return
    path = Path(name)
    if documents == LINE:
        for number, line in text_lines(path, skipped):
            if line.strip():
                yield Record({"text": line}, number, name)
        return
    yield from _blocks(path, documents == BLANK_LINE, skipped)


def holds_records(name: str) -> bool:
    """Whether a file or data set is one of records, by its name."""
    return name.lower().removesuffix(".gz").endswith(_OF_RECORDS) or is_data_set(name, [])


def evaluation_texts(paths: Sequence[str], fields: Sequence[str], extensions: Sequence[str]) -> Iterator[str]:
    """Every text of evaluation data by itself: of each record its fields (all texts if empty), of text each line."""
    for source in sources_of(paths, extensions):
        for record in read_source(source.name, LINE, Skipped()):
            names = fields or [name for name, value in record.fields.items() if isinstance(value, str)]
            yield from texts_of(record, names_of(record, names))


def _blocks(path: Path, at_blank_lines: bool, skipped: Skipped) -> Iterator[Record]:
    """The documents of a text file: the whole file, or what stands between blank lines."""
    lines: list[str] = []
    size, first = 0, 1
    for number, line in text_lines(path, skipped):
        if at_blank_lines and not line.strip():
            if lines:
                yield Record({"text": "\n".join(lines)}, first, str(path))
            lines, size = [], 0
            continue
        if size <= LONGEST_LINE:
            first = number if not lines else first
            lines.append(line)
            size += len(line.encode("utf-8", "surrogatepass")) + 1
            if size > LONGEST_LINE:
                lines.clear()
                reason = (
                    f"{path}:{first}: the document is longer than {shown_size(LONGEST_LINE)}; set documents to"
                    " line or blank_line"
                )
                skipped.bad(BadRecordError(reason, "document too long"), str(path), first, line)
    if any(line.strip() for line in lines):
        yield Record({"text": "\n".join(lines)}, first, str(path))
    elif not at_blank_lines and size <= LONGEST_LINE:
        skipped.note(str(path), 1, "empty", "the file holds no text", "")


def _size(name: str) -> int:
    if os.path.isfile(name):
        return os.path.getsize(name)
    return (
        sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file())
        if os.path.isdir(name)
        else 0
    )
