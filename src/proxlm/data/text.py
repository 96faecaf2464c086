"""Plain text for pretraining: reading and cleaning it, and setting some aside for validation."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from proxlm.data.documents import Documents, validation_rows
from proxlm.data.formats import missing_field
from proxlm.data.lines import text_lines
from proxlm.data.records import iter_records
from proxlm.data.skipped import Record, Skipped
from proxlm.data.tables import is_data_set
from proxlm.errors import BadRecordError, DataError

T = TypeVar("T")
_CLEANED_AT_ONCE = 2**16


def read_texts(paths: Sequence[str], extensions: Sequence[str], skipped: Skipped | None = None) -> Documents:
    """The documents in `paths`, cleaned, in a fixed order; blank ones are left out.

    A file is one document, whatever its extension, except that a .jsonl or .ndjson file (also .gz), a .parquet
    file and a data set (see records.iter_records) hold one document per record, in the field "text". A file that is
    reached twice is read once.

    Args:
        paths: Files, folders and data sets.
        extensions: Which files of a folder, and of all folders in it, are read: those whose names end so.
        skipped: Receives what is left out; by default a bad record raises its error.

    Raises:
        DataError: A path does not exist or has no text.
    """
    skipped = skipped if skipped is not None else Skipped()
    documents = Documents()
    for source, named in text_sources(paths, extensions):
        before = len(documents)
        if _holds_records(source):
            for record in iter_records(source, skipped):
                with skipped.judging(record):
                    text = clean_text(_text_of(record))
                    if text.strip():
                        documents.append([text])
                    else:
                        skipped.leave_out(record, "empty", 'field "text" is empty')
        else:
            _add_file(documents, Path(source), skipped)
        if named and len(documents) == before:
            why = f"; the first record left out: {skipped.first_in(source)}" if skipped.first else ""
            raise DataError(f"{source}: the file holds no text{why}")
    if not len(documents):
        raise DataError(f"{', '.join(map(str, paths)) or 'text.train'}: there is no text to read")
    return documents


def clean_text(text: str) -> str:
    """The text in Unicode NFC with LF line ends, without byte order mark and control characters except tab and LF."""
    text = text.translate(_DROPPED).replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text)


_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_DROPPED = dict.fromkeys(code for code in (*_CONTROLS, 0xFEFF) if chr(code) not in "\t\n\r")


def split_validation(records: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Records → those to train on, those to validate on: `share` of them, at least one, drawn by `seed`.

    Where they are texts too few for that (share × count < 1, one long file for instance), the last `share` of
    each text is set aside instead, from the end of a line or a word. Order is kept; nothing is lost or in
    both parts. Raises DataError if there is too little for two parts.
    """
    texts = [record for record in records if isinstance(record, str)]
    if len(texts) == len(records) and len(records) * share < 1:
        train, validation = Documents(texts).split(share, seed)
        return list(train), list(validation)  # type: ignore[arg-type]
    held_out = validation_rows(len(records), share, seed)
    return (
        [record for i, record in enumerate(records) if i not in held_out],
        [record for i, record in enumerate(records) if i in held_out],
    )


def text_sources(paths: Sequence[str], extensions: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Files and data sets to read, each once, and whether it was named itself or found in a folder."""
    found: dict[str, str] = {}
    named: set[str] = set()
    for name in paths:
        path = Path(name)
        inside = [path]
        if is_data_set(name, texts := files_in(path, extensions)):
            inside = []
            found.setdefault(name, name)
            named.add(name)
        elif os.path.isdir(path):
            inside = texts
            if not texts:
                raise DataError(
                    f"{path}: of the {sum(len(names) for _, _, names in os.walk(path))} files in this folder none"
                    f" has an extension in text.extensions: {', '.join(extensions)}"
                )
        else:
            named.add(os.path.realpath(path))
        for file in inside:
            found.setdefault(os.path.realpath(file), str(file))
    return ((source, key in named) for key, source in found.items())


def files_in(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """The files in a folder and all folders in it with one of the extensions; none if there is no such folder."""
    endings = tuple(extension.lower() for extension in extensions)
    every = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sorted(file for file in every if file.name.lower().endswith(endings))


def _holds_records(source: str) -> bool:
    name = source.lower().removesuffix(".gz")
    return name.endswith((".jsonl", ".ndjson")) or is_data_set(source, [])


def _text_of(record: Record) -> str:
    if "text" not in record.fields:
        raise missing_field(record, "text", 'the name of the field to "text"')
    text = record.fields["text"]
    if not isinstance(text, str):
        raise BadRecordError(f'{record.where}: field "text" must be a text', "no text")
    return text


def _add_file(documents: Documents, file: Path, skipped: Skipped) -> None:
    """Add a file as one document, unless it is blank."""
    blank = True

    def parts() -> Iterator[str]:
        nonlocal blank
        for part in _cleaned(file, skipped):
            blank = blank and not part.strip()
            yield part

    documents.append(parts())
    if blank:
        documents.drop_last()
        skipped.note(str(file), 1, "empty", "the file holds no text", "")


def _cleaned(file: Path, skipped: Skipped) -> Iterator[str]:
    """The file's cleaned text, some lines at a time; cleaning works line by line."""
    waiting: list[str] = []
    size = 0
    for _, line in text_lines(file, skipped):
        if size > _CLEANED_AT_ONCE:
            yield clean_text("\n".join(waiting) + "\n")
            waiting, size = [], 0
        waiting.append(line)
        size += len(line) + 1
    yield clean_text("\n".join(waiting))
