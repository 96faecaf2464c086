"""Plain text for pretraining: read it, clean it, set some aside for validation."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from proxlm.data.records import missing_field, read_lines, read_records
from proxlm.errors import DataError
from proxlm.seeds import derive_seed

T = TypeVar("T")


def read_texts(paths: Sequence[str], extensions: Sequence[str]) -> list[str]:
    """The documents in `paths`, cleaned, in a fixed order; blank ones are left out.

    A file is one document, whatever its extension; a .jsonl file (or .jsonl.gz) holds one per line, in the
    field "text". Of a folder and all folders in it, the files whose names end in one of `extensions` are
    read; a file reached twice is read once. Raises DataError if a path is missing or has no text.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        found = [Path(path).expanduser()]
        if found[0].is_dir():
            found = _files_in(found[0], extensions)
        for file in found:
            files.setdefault(file.resolve(), file)
    named = {Path(path).expanduser().resolve() for path in paths}
    texts = []
    for resolved, file in files.items():
        documents = [text for text in map(clean_text, _documents(file)) if text.strip()]
        if not documents and resolved in named:
            raise DataError(f"{file}: the file holds no text")
        texts += documents
    if not texts:
        raise DataError(f"{', '.join(map(str, paths)) or 'text.train'}: there is no text to read")
    return texts


def clean_text(text: str) -> str:
    """Unicode NFC, LF line ends, and no byte order mark or control character but tab and line feed."""
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
        cuts = [(text, _cut_position(text, share)) for text in texts]
        train = [text[:cut] for text, cut in cuts if cut]
        validation = [text[cut:] for text, cut in cuts if cut < len(text)]
        if train and validation:
            return train, validation  # type: ignore[return-value]
    if len(records) < 2:
        raise DataError("one record cannot be split in training and validation; set text.validation")
    order = list(range(len(records)))
    random.Random(derive_seed(seed, "validation")).shuffle(order)
    count = min(max(1, round(share * len(records))), len(records) - 1)
    chosen = set(order[:count])
    return (
        [record for i, record in enumerate(records) if i not in chosen],
        [record for i, record in enumerate(records) if i in chosen],
    )


def _cut_position(text: str, share: float) -> int:
    """Where the last `share` of the text begins, moved back to after the line break or space before it."""
    target = len(text) - max(1, round(len(text) * share))
    for separator in ("\n", " "):
        position = text.rfind(separator, 0, target) + 1
        if position > target // 2:
            return position
    return target


def _files_in(folder: Path, extensions: Sequence[str]) -> list[Path]:
    endings = tuple(extension.lower() for extension in extensions)
    every = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    found = sorted(file for file in every if file.name.lower().endswith(endings))
    if not found:
        raise DataError(
            f"{folder}: of the {len(every)} files in this folder none ends as text.extensions says:"
            f" {', '.join(extensions)}"
        )
    return found


def _documents(file: Path) -> list[str]:
    if not file.name.lower().removesuffix(".gz").endswith(".jsonl"):
        return ["\n".join(read_lines(file))]
    texts = []
    for record in read_records(file):
        if "text" not in record.fields:
            raise missing_field(file, record, "text", 'the name of the field to "text"')
        if not isinstance(record.fields["text"], str):
            raise DataError(f'{file}:{record.line}: field "text" must be a text')
        texts.append(record.fields["text"])
    return texts
