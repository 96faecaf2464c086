"""What may pass between a program and its tests, and how one side calls the functions of the other.

Values cross as copies of plain data, so that nothing of the program ever runs where its tests are judged: a value
whose `==` always says yes arrives as what it is underneath, or as a handle that is equal to nothing.
"""

from __future__ import annotations

import builtins
import json
import os
import types
from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from sys import stdlib_module_names
from typing import Any

LARGEST_FRAME = 16 << 20
_LONGEST_MESSAGE = 300


class LostError(BaseException):
    """The other side is gone, or speaks nonsense. No Exception: tests that expect one must not catch it."""


def write_frame(place: int, message: Any) -> None:
    data = json.dumps(message).encode()
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(place, view) :]


def read_frame(place: int, largest: int = LARGEST_FRAME) -> Any:
    """The next message. Raises EOFError at the end, ValueError for nonsense."""
    size = int.from_bytes(_read(place, 4), "big")
    if size > largest:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(_read(place, size))


def _read(place: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(place, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Handle:
    """Something on the other side that is no plain data. It can be called, looped over, and asked for what it has."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer, self._number = peer, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.call(self._number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._peer.request("get", self._number, name)

    def __iter__(self) -> Any:
        return self.__getattr__("__iter__")()

    def __next__(self) -> Any:
        return self.__getattr__("__next__")()

    def __len__(self) -> int:
        try:
            return int(self.__getattr__("__len__")())
        except AttributeError as error:
            raise TypeError("it has no length") from error

    def __getitem__(self, key: Any) -> Any:
        return self.__getattr__("__getitem__")(key)

    def __str__(self) -> str:
        return str(self.__getattr__("__str__")())

    def __repr__(self) -> str:
        return str(self.__getattr__("__repr__")())

    def __bool__(self) -> bool:
        try:
            return len(self) > 0
        except TypeError:
            return True


class Peer:
    """One end of the line. open: the other side may ask for attributes of what it has a handle to."""

    def __init__(self, reads: int, writes: int, *, open: bool) -> None:
        self._reads, self._writes, self._open = reads, writes, open
        self._given: list[Any] = []
        self.lost = False

    def call(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call what the handle stands for; lists, dicts and sets that it changed are changed here too."""
        value, after = self.request("call", number, arguments, named)
        for mine, theirs in zip(arguments, after, strict=False):
            if type(mine) is not type(theirs):
                continue
            if isinstance(mine, list):
                mine[:] = theirs
            elif isinstance(mine, dict | set):
                mine.clear()
                mine.update(theirs)
        return value

    def request(self, *words: Any) -> Any:
        """Ask, and serve the other side until it answers. Raises what was raised there, or LostError."""
        if self.lost:
            raise LostError
        try:
            write_frame(self._writes, [words[0], [self._pack(word) for word in words[1:]]])
            while True:
                kind, content = read_frame(self._reads)
                if kind == "value":
                    return self._unpack(content)
                if kind == "raise":
                    break
                self._serve(kind, content)
        except Exception as error:
            self.lost = True
            raise LostError from error
        raise _exception(*content)

    def serve_for_ever(self) -> None:
        """Answer requests until the other side closes the line."""
        while True:
            try:
                kind, content = read_frame(self._reads)
            except EOFError:
                return
            self._serve(kind, content)

    def _serve(self, kind: str, content: list[Any]) -> None:
        try:
            answer = ["value", self._pack(self._answer(kind, *(self._unpack(word) for word in content)))]
        except MemoryError:
            raise
        except BaseException as error:
            names = [one.__name__ for one in type(error).__mro__]
            answer = ["raise", [names, str(error)[:_LONGEST_MESSAGE]]]
        write_frame(self._writes, answer)

    def _answer(self, kind: str, number: int, *words: Any) -> Any:
        thing = self._given[number]
        if kind == "call":
            arguments, named = words
            value = thing(*arguments, **named)
            return value, tuple(one if isinstance(one, list | dict | set) else None for one in arguments)
        if not self._open or kind != "get":
            raise TypeError("what the tests pass to a program can be called, and no more")
        return getattr(thing, words[0])

    def publish(self, names: dict[str, Any]) -> None:
        """Give the other side the right to ask for these, as its handle 0."""
        self._given.insert(0, lambda: names)

    def _pack(self, value: Any) -> Any:
        """Plain data as JSON; subclasses as their base; a handle for all else."""
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value) if abs(value) < 1 << 63 else ["int", hex(value)]
        for kind, (tag, _) in _CONTAINERS.items():
            if isinstance(value, kind):
                items: Iterator[Any] = kind.__iter__(value)
                if isinstance(value, dict):
                    items = (one for pair in dict.items(value) for one in pair)
                return [tag, *(self._pack(one) for one in items)]
        if isinstance(value, bytes | bytearray):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, Handle) and value._peer is self:
            return ["yours", value._number]
        self._given.append(value)
        return ["mine", len(self._given) - 1]

    def _unpack(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        tag, *rest = value
        for known, make in _CONTAINERS.values():
            if tag == known:
                return make([self._unpack(one) for one in rest])
        if tag == "mine":
            return Handle(self, int(rest[0]))
        if tag == "yours":
            return self._given[rest[0]]
        return _SCALARS[tag](*rest)


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _module(name: str) -> Any:
    """The module itself, not the program's idea of it; only one of Python's own."""
    return import_module(name) if name.split(".")[0] in stdlib_module_names else None


_CONTAINERS: dict[Any, tuple[str, Callable[[list[Any]], Any]]] = {
    list: ("list", list),
    tuple: ("tuple", tuple),
    dict: ("dict", _pairs),
    set: ("set", set),
    frozenset: ("frozenset", frozenset),
    deque: ("deque", deque),
}
_SCALARS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "range": range,
    "module": _module,
}


def _exception(names: list[str], text: str) -> BaseException:
    """The nearest of Python's own exceptions among the names of one's classes, most special first."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError, for instance, wants more than a text
                continue
    return Exception(text)
