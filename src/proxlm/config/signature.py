"""The arguments of public functions, checked against their declared types when they are called.

Settings have checks of their own (tree.py); this is for everything else that a Python caller passes.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Callable as AnyCallable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from proxlm.config.values import shown_value
from proxlm.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
_MANY = {str: "texts", int: "whole numbers", float: "numbers"}
_VOWELS = "AEIOU"


def checked(*own: str) -> Callable[[F], F]:
    """A decorator: the function raises ConfigError for an argument that is not of its declared type.

    The message names the argument, what it was and what it should be. Types that cannot be looked at (of elements of
    an iterator, of a function's arguments) are not checked, and numbers of other libraries count as numbers.

    Args:
        own: Arguments that the function checks itself.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.cache
        def hints() -> dict[str, Any]:  # at the first call: some are of modules that import this one
            looked_at = [p for name, p in signature.parameters.items() if name not in ("self", *own)]
            return {p.name: _resolved(function, p.annotation) for p in looked_at}

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                bound = signature.bind(*arguments, **named).arguments
            except TypeError:
                return function(*arguments, **named)  # which says what is missing
            for name, hint in hints().items():
                if name in bound and not _fits(bound[name], hint):
                    raise ConfigError(f"{name}: expected {_described(hint)}, got {shown_value(bound[name])}")
            return function(*arguments, **named)

        return call  # type: ignore[return-value]

    return decorate


def _resolved(function: Any, annotation: Any) -> Any:
    """The type that an annotation names; Any for one that only a type checker knows."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, vars(sys.modules[function.__module__]))
    except NameError:
        return Any


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (str, bool):
        return isinstance(value, hint)
    if hint in (int, float):
        return hasattr(value, "__index__" if hint is int else "__float__") and not isinstance(
            value, bool | str | type
        )
    if origin is AnyCallable:
        return callable(value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    if origin in (Iterable, Sequence, list):
        return _is_list(value, origin) and (
            not isinstance(value, list | tuple) or all(_fits(item, inner[0]) for item in value)
        )
    if not isinstance(hint, type) or hint is object:
        return True
    if getattr(hint, "_is_protocol", False):
        asked = [name for name in vars(hint) if not name.startswith("_") or name == "__call__"]
        return all(hasattr(value, name) for name in asked)
    return isinstance(value, os.PathLike if issubclass(hint, os.PathLike) else hint)


def _is_list(value: Any, kind: Any) -> bool:
    """Whether a value may stand where a list may: a data set may, a text or a mapping may not."""
    if isinstance(value, str | bytes | Mapping):
        return False
    many = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return many or (kind is Iterable and hasattr(value, "__iter__"))


def _described(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(_described(one) for one in inner if one is not type(None))
        return " or ".join([*words, *(["None"] if type(None) in inner else [])])
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is AnyCallable:
        return "a function"
    if origin is Mapping:
        return "a mapping"
    if origin in (Iterable, Sequence, list):
        element = inner[0]
        if isinstance(element, type) and element is not object:
            return f"a list of {_MANY.get(element, element.__name__ + ' objects')}"
        return "a list of functions" if get_origin(element) is AnyCallable else "a list"
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "a path"
    name = getattr(hint, "__name__", str(hint))
    return f"{'an' if name[:1] in _VOWELS else 'a'} {name}"
