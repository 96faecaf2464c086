"""The protocol between a program and its tests: which values pass, and how one side calls the other's functions.

Values are copied as plain data, so that no code of the program runs in the process of its tests: an object whose
`==` always returns True arrives as the plain data that it is derived from, or as a handle that equals nothing.
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
# Methods that raise StopIteration to say that there is no more.
_STOPPING = {"__next__", "__anext__", "send", "throw"}
# Modules that do something when they are imported: print, open a browser or a window.
_ACTING = {"__main__", "antigravity", "idlelib", "this", "turtle", "turtledemo"}
_LONGEST_MESSAGE = 300
_LARGE = 1 << 16


class LostError(BaseException):
    """The other side ended or broke the protocol. Not an Exception, so that tests that expect one do not catch it."""


def write_frame(descriptor: int, message: Any) -> None:
    """Write a message: its length in four bytes, then JSON."""
    data = json.dumps(message).encode()
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frame(descriptor: int, largest: int = LARGEST_FRAME) -> Any:
    """The next message. Raises EOFError at the end, ValueError for an invalid message."""
    size = int.from_bytes(_read(descriptor, 4), "big")
    if size > largest:
        raise ValueError(f"a message of {size} bytes")
    try:
        return json.loads(_read(descriptor, size))
    except RecursionError as error:
        raise ValueError("a message that is nested too deeply") from error


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Handle:
    """An object on the other side that is not plain data; it can be called, iterated, and its attributes read."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer, self._number, self._may_stop = peer, number, False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.call(self._number, arguments, named, may_stop=self._may_stop)

    def __getattr__(self, name: str) -> Any:
        value = self._peer.request("get", self._number, name)
        if isinstance(value, Handle):
            value._may_stop = name in _STOPPING
        return value

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
    """One end of the connection.

    Args:
        reads: The descriptor to read from.
        writes: The descriptor to write to.
        open: Whether the other side may read attributes of the objects that it has handles to.
    """

    def __init__(self, reads: int, writes: int, *, open: bool) -> None:
        self._reads, self._writes, self._open = reads, writes, open
        self._objects: list[Any] = []  # those that the other side has handles to
        self.lost = False

    def call(
        self, number: int, arguments: tuple[Any, ...], named: dict[str, Any], *, may_stop: bool = False
    ) -> Any:
        """Call the object of a handle; changes that it makes to lists, dicts and sets are made here too.

        may_stop: whether it may raise StopIteration, as an iterator's methods do. From a function that would
            end a `map` or a `zip` of the tests without a sign, and with it what they check.
        """
        answer = self.request("call", number, arguments, named, may_stop=may_stop)
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], tuple)):
            self.lost = True
            raise LostError
        value, after = answer
        for mine, theirs in zip(arguments, after, strict=False):
            if type(mine) is not type(theirs):
                continue
            if isinstance(mine, list):
                mine[:] = theirs
            elif isinstance(mine, dict | set):
                mine.clear()
                mine.update(theirs)
        return value

    def request(self, kind: str, *arguments: Any, may_stop: bool = False) -> Any:
        """Send a request, and serve the other side until it answers. Raises what was raised there, or LostError."""
        if self.lost:
            raise LostError
        try:
            write_frame(self._writes, [kind, [self._pack(one) for one in arguments]])
            while True:
                answer, content = read_frame(self._reads)
                if answer == "value":
                    return self._unpack(content)
                if answer == "raise":
                    raised = _exception(*content)
                    break
                self._serve(answer, content)
        except BaseException as error:
            self.lost = True
            raise LostError from error
        if isinstance(raised, StopIteration | StopAsyncIteration) and not may_stop:
            raised = RuntimeError(f"the program raised {type(raised).__name__}: {raised}")
        raise raised

    def serve_for_ever(self) -> None:
        """Answer requests until the other side closes the connection. Raises LostError for what is no request."""
        while True:
            try:
                kind, content = read_frame(self._reads)
            except EOFError:
                return
            except (ValueError, TypeError) as error:
                raise LostError from error
            self._serve(kind, content)

    def published(self) -> dict[str, Any]:
        """What the other side published, by name; LostError if it is no such table."""
        names = self.call(0, (), {})
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names):
            self.lost = True
            raise LostError
        return names

    def _serve(self, kind: str, content: list[Any]) -> None:
        try:
            answer = ["value", self._pack(self._answer(kind, *(self._unpack(one) for one in content)))]
        except MemoryError:
            raise
        except BaseException as error:
            answer = ["raise", _told(error)]
        write_frame(self._writes, answer)

    def _answer(self, kind: str, number: int, *details: Any) -> Any:
        thing = self._objects[number]
        if kind == "call":
            arguments, named = details
            value = thing(*arguments, **named)
            return value, tuple(one if isinstance(one, list | dict | set) else None for one in arguments)
        if not self._open or kind != "get":
            raise TypeError("what the tests pass to a program can only be called")
        return getattr(thing, details[0])

    def publish(self, names: dict[str, Any]) -> None:
        """Let the other side ask for these objects by name, through its handle 0.

        A large table that the program made for itself is not copied: it is a handle.
        """
        self._objects.insert(0, lambda: {name: _Large(v) if _is_large(v) else v for name, v in names.items()})

    def _pack(self, value: Any) -> Any:
        """Plain data as JSON; an object of a subclass as its base type; a handle for everything else."""
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
        self._objects.append(value.value if isinstance(value, _Large) else value)
        return ["mine", len(self._objects) - 1]

    def _unpack(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        tag, *items = value
        for known, make in _CONTAINERS.values():
            if tag == known:
                return make([self._unpack(one) for one in items])
        if tag == "mine":
            return Handle(self, int(items[0]))
        if tag == "yours":
            return self._objects[items[0]]
        return _SCALARS[tag](*items)


class _Large:
    """Plain data that passes as a handle."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _is_large(value: Any) -> bool:
    """Whether plain data, with what its items hold, has very many elements."""
    kind = next((kind for kind in (*_CONTAINERS, str, bytes, bytearray) if isinstance(value, kind)), None)
    if kind is None:
        return False
    size = kind.__len__(value)
    if kind in _CONTAINERS and size <= _LARGE:
        items = dict.values(value) if isinstance(value, dict) else kind.__iter__(value)
        size += sum(len(one) for one in items if type(one) in (list, tuple, dict, set, str, bytes))
    return bool(size > _LARGE)


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _module(name: str) -> Any:
    """The module of Python's own standard library by that name, not the program's; None for any other."""
    top, *below = name.split(".")
    usable = top in stdlib_module_names - _ACTING and not {"", "__main__"} & {*below}
    return import_module(name) if usable else None


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


def _told(error: BaseException) -> list[Any]:
    """An exception for the other side: the names of its classes, the most specific first, and its text."""
    names = [str(one.__name__) for one in type(error).__mro__]
    try:
        return [names, str.__str__(str(error))[:_LONGEST_MESSAGE]]
    except Exception:  # a program's own __str__ may raise anything; what ends it, ends it
        return [names, ""]


def _exception(names: list[str], text: str) -> BaseException:
    """An instance of the most specific built-in exception among the names of an exception's classes."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(str(text))
            except TypeError:  # UnicodeDecodeError, for instance, needs more arguments
                continue
    return Exception(str(text))
