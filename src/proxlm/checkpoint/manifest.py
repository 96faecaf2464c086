"""A checkpoint's manifest: size and hash of each file, so that a torn or altered file is detected and named."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from proxlm.errors import RunError
from proxlm.files import open_regular, read_regular
from proxlm.runlog.folder import write_json_atomic
from proxlm.text import shortened, system_reason

NAME = "manifest.json"
FORMAT = 1
# Bytes of a manifest or a state that are read: far more than any run writes.
LARGEST = 2**28


class FileRecord(NamedTuple):
    """A file's size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def write_manifest(folder: Path) -> None:
    """Record every file below `folder`, and flush the record to the disk. Raises RunError."""
    files = {name: file_record(folder / name)._asdict() for name in _files(folder)}
    write_json_atomic(folder / NAME, {"format": FORMAT, "files": files})


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The records of a checkpoint's files by their path in it, "policy/config.json" for instance.

    Raises RunError that names the manifest, whatever it holds.
    """
    path = folder / NAME
    data = read_json_object(path)
    if data.get("format") != FORMAT:
        raise RunError(f"{path}: format {_short(data.get('format'))}, where this version knows {FORMAT}")
    files = data.get("files")
    if not isinstance(files, dict) or not files:
        raise RunError(f"{path}: names no files")
    return {name: _record_of(path, name, value) for name, value in files.items()}


def _record_of(path: Path, name: str, value: Any) -> FileRecord:
    size, sha256 = (value.get("size"), value.get("sha256")) if isinstance(value, dict) else (None, None)
    if type(size) is int and size >= 0 and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
        return FileRecord(size, sha256)
    raise RunError(f"{path}: {_short(name)}: no size and SHA-256")


def damage(folder: Path) -> str | None:
    """The first difference from what was written, with the file's name; None: there is none.

    Every file is read. Hidden files, which file systems leave there, are ignored. Raises RunError if the
    manifest cannot be read.
    """
    written = read_manifest(folder)
    try:
        there = set(_files(folder))
        for name, record in written.items():
            if name not in there:
                return f"{_short(name)[1:-1]} is missing"
            now = file_record(folder / name)
            if now.size != record.size:
                return f"{name} has {now.size} bytes, written were {record.size}"
            if now.sha256 != record.sha256:
                return f"{name} is not what was written (another SHA-256)"
    except OSError as error:
        return f"{error.filename or folder}: {system_reason(error)}"
    strange = sorted(there - written.keys())
    return f"{strange[0]} was not there when it was written" if strange else None


def is_published(checkpoint: Path, name: str, folder: Path) -> bool:
    """Whether `folder` holds exactly the files that the checkpoint has in its folder `name`.

    Raises RunError if the manifest cannot be read.
    """
    prefix = f"{name}/"
    wanted = {
        path.removeprefix(prefix): record
        for path, record in read_manifest(checkpoint).items()
        if path.startswith(prefix)
    }
    try:
        return {path: file_record(folder / path) for path in _files(folder)} == wanted
    except OSError:
        return False


def _files(folder: Path) -> list[str]:
    """Paths of what is below `folder` and no folder, without its manifest and hidden ones."""
    found = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()]
    return [p.as_posix() for p in found if p.as_posix() != NAME and not p.name.startswith(".")]


def file_record(path: Path) -> FileRecord:
    """A file's size and hash as they are now. Raises OSError."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(file.tell(), digest)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises RunError that names the file, whatever is in it."""
    try:
        value = json.loads(read_regular(path, LARGEST).decode("utf-8"), parse_constant=_not_json)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {system_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds {_short(value)}, where an object is needed")
    return value


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _short(value: Any) -> str:
    return shortened(ascii(value), 60)
