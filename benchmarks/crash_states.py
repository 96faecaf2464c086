"""What a crash can leave of a folder, after each of its recorded file operations.

Contents and names reach the disk separately: the bytes of a file when it is synced, the names in a folder when the
folder is. A process that is killed leaves everything it has done (`whole`), a write perhaps in part (`torn`). A power
cut may lose what was not synced, and keeps any of it:

data lost     contents that were not synced are gone: the file is as it was when it was last synced, or empty
zeros         the same, but the file has its length, and zeros where the bytes are gone
names lost    each folder has the names it had when it was last synced; contents are there
both lost     only what was synced is there
in FOLDER     one folder has lost its names, and the others have theirs: later renames elsewhere survive
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from file_operations import NO_EFFECT, Operation

# Path → contents; None: a folder.
State = dict[str, bytes | None]


@dataclass
class File:
    data: bytes = b""
    synced: bytes | None = None


@dataclass
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """A folder's files while operations are applied to it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.root = Folder() if folder is None else _read(folder)

    def apply(self, operation: Operation) -> None:
        """Do one operation. Raises ValueError where it does not fit what was done before."""
        kind, path = operation.kind, operation.path
        if kind in NO_EFFECT or kind == "chmod":
            return
        if kind == "sync":
            node = self._at(path)
            if isinstance(node, File):
                node.synced = node.data
            else:
                node.synced = dict(node.names)
            return
        if kind in ("write", "truncate"):
            file, value = self._at(path), operation.value
            assert isinstance(file, File)
            if kind == "truncate":
                file.data = file.data[:value].ljust(value, b"\0")
            else:
                end = value + len(operation.data)
                file.data = file.data[:value].ljust(value, b"\0") + operation.data + file.data[end:]
            return
        parent, name = self._parent(path)
        if kind in ("create", "mkdir"):
            parent.names[name] = File() if kind == "create" else Folder()
        elif kind in ("unlink", "rmdir"):
            del parent.names[name]
        elif kind in ("rename", "link"):
            to, new = self._parent(operation.other)
            to.names[new] = parent.names.pop(name) if kind == "rename" else parent.names[name]
        else:
            raise ValueError(kind)

    def states(self, torn: Operation | None = None) -> Iterator[tuple[str, State]]:
        """What a crash now may leave, by what has happened to it.

        torn: The operation that comes next; if it is a write, parts of it are there.
        """
        yield "whole", _state(self.root, names=None, data="kept")
        yield "data lost", _state(self.root, names=None, data="lost")
        yield "zeros", _state(self.root, names=None, data="zeros")
        yield "names lost", _state(self.root, names="all", data="kept")
        yield "both lost", _state(self.root, names="all", data="lost")
        for folder in self._folders(self.root, ""):
            yield f"names lost in {folder or '.'}", _state(self.root, names=folder, data="kept")
        if torn is not None and torn.kind == "write":
            file = self._at(torn.path)
            assert isinstance(file, File)
            before, length = file.data, len(torn.data)
            # Rows are read up to the last whole line; a file of another kind is only whole under its own name.
            parts = {1, length // 2, length - 1} if torn.path.endswith(".jsonl") else {length // 2}
            for part in sorted(parts - {0, length}):
                file.data = before[: torn.value] + torn.data[:part] + before[torn.value + part :]
                yield f"torn after {part} of {length} bytes", _state(self.root, names=None, data="kept")
            file.data = before

    def _folders(self, folder: Folder, path: str) -> Iterator[str]:
        """The folders whose names are not all synced."""
        if folder.names != folder.synced:
            yield path
        for name, node in folder.names.items():
            if isinstance(node, Folder):
                yield from self._folders(node, f"{path}/{name}".lstrip("/"))

    def _parent(self, path: str) -> tuple[Folder, str]:
        place = PurePosixPath(path)
        parent = self._at(str(place.parent) if len(place.parts) > 1 else "")
        assert isinstance(parent, Folder), path
        return parent, place.name

    def _at(self, path: str) -> File | Folder:
        node: File | Folder = self.root
        for part in PurePosixPath(path).parts:
            assert isinstance(node, Folder), path
            node = node.names[part]
        return node


def _read(folder: Path) -> Folder:
    """A folder as it is on the disk, all of it synced."""
    names: dict[str, File | Folder] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            names[entry.name] = _read(entry)
        else:
            data = entry.read_bytes()
            names[entry.name] = File(data, data)
    return Folder(names, dict(names))


def _state(root: Folder, names: str | None, data: str) -> State:
    """The tree with the names of all folders ("all"), one folder or none (None) as they were synced."""
    found: State = {}

    def walk(folder: Folder, path: str) -> None:
        lost = names == "all" or names == path
        for name, node in (folder.synced if lost else folder.names).items():
            below = f"{path}/{name}".lstrip("/")
            if isinstance(node, Folder):
                found[below] = None
                walk(node, below)
            else:
                found[below] = _contents(node, data)

    walk(root, "")
    return found


def _contents(file: File, data: str) -> bytes:
    synced = file.synced or b""
    if data == "kept" or file.synced is file.data:
        return file.data
    if data == "lost":
        return synced
    return synced[: len(file.data)].ljust(len(file.data), b"\0")


def key(state: State) -> tuple[tuple[str, bytes | None], ...]:
    """What is the same for the same state."""
    return tuple(sorted(state.items()))


def put(state: State, folder: Path) -> None:
    """Make the folder hold this state and nothing else."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for path, data in sorted(state.items()):
        place = folder / path
        if data is None:
            place.mkdir()
        else:
            with open(place, "wb", buffering=0) as file:
                file.write(data)
                os.utime(file.fileno())
