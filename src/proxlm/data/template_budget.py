"""What one rendering of a chat template may do, and what an operation of it would cost, computed before it is done.

The budget counts work, not time, so the same conversation is rendered, or refused, on every machine.
"""

from __future__ import annotations

import re
import threading
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Sized, ValuesView
from typing import Any

from jinja2.filters import make_attrgetter
from jinja2.utils import Namespace

# Turns of loops, calls, and pieces of _PIECE characters made, of one rendering: a second or two.
MOST_WORK = 2**20
_PIECE = 1024
# Characters of one text, items of one list: four million tokens do not need more.
LARGEST = 2**24
# Characters of a template; those in use have up to some 60,000.
LONGEST_SOURCE = 2**18
_MOST_BITS = 2**14  # of a whole number
_LONGEST_PART = 64  # characters or columns of what `tojson` writes between two values
_LONGEST_INPUT = 2**16  # of filters that take more than linear time
_LONGEST_DATE = 2**10

_SLOW = frozenset(("striptags", "urlize", "wordwrap", "xmlattr"))
# Filters that look at the outside of a value alone; every other one may write or compare all that is in it.
_SHALLOW = frozenset(
    ("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject",
     "rejectattr", "reverse", "select", "selectattr", "slice")
)  # fmt: skip
# Widths and precisions of five digits, in `%` and in `{}`; names are short, so that the search stays linear.
_WIDTH = re.compile(r"%(\([^)]{0,200}\))?[-+ #0]*[\d*]*\.?\d{5}|%\([^)]{201}|\{[^{}]*:[^{}]*\d{5}")
_NESTED = re.compile(r"\{[^{}]*\{")
_ITEM = 16  # an item of a list counts as so many characters


class TemplateLimitError(Exception):
    """A template does more than any conversation needs."""


class _Budget(threading.local):
    """What is left of the rendering that the thread is at, and what it has written so far."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.left = MOST_WORK
        self.written = 0
        self.spans: list[tuple[int, int]] = []

    def take(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TemplateLimitError(
                "it does not come to an end: too many turns of loops, calls or characters"
            )

    def write(self, size: int) -> None:
        """After `size` characters were written."""
        self.written += size
        if self.written > LARGEST:
            raise TemplateLimitError(f"it writes more than {LARGEST:,} characters")

    def make(self, size: int) -> None:
        """Before a text or list of `size` characters or items is made."""
        if size > LARGEST:
            raise TemplateLimitError(f"it makes a text or list of {size:,} characters or items")
        self.take(size // _PIECE)


BUDGET = _Budget()


def check_source(source: str) -> None:
    """Raise TemplateLimitError for a template that is too long to read."""
    if len(source) > LONGEST_SOURCE:
        raise TemplateLimitError(f"it has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")


def check_date_format(format: str) -> None:
    """Raise TemplateLimitError for a format of a date that could write much."""
    if len(format) > _LONGEST_DATE:
        raise TemplateLimitError(f"a date's format has more than {_LONGEST_DATE:,} characters")


def turns_of(characters: int) -> int:
    """What a turn of a loop that writes so many characters takes."""
    return 1 + characters // _PIECE


def made(result: Any) -> Any:
    """What an operation has made, once the budget has had what it takes."""
    if _sized(result):
        BUDGET.make(_size(result))
    return result


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Before an operation on two values."""
    BUDGET.take(1)
    if operator == "%" and isinstance(left, str | bytes):
        _check_format(str(left), (right,))
    elif operator == "+" and _sized(left) and _sized(right):
        BUDGET.make(_size(left) + _size(right))
    elif operator == "*":
        _check_product(left, right)
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(0, right))


def check_call(function: Any, given: Sequence[Any]) -> None:
    """Before a function or a method, no macro, is called with these values."""
    name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if isinstance(function, type):
        return
    if isinstance(owner, str | bytes):
        _check_method(name, owner, given)
    elif name in ("format", "format_map"):  # the sandbox's own
        _check_format(getattr(function, "__wrapped__", function).__self__, given)
    elif owner is not None:
        _check_numbers(given)


def weighed(value: Any) -> Any:
    """The value, once the budget has had what it takes to write or compare all of it."""
    BUDGET.make(_weight(value))
    return value


def _weight(value: Any) -> int:
    """Characters and items in a value, counted no further than LARGEST.

    The same list in two places counts twice: so it is written.
    """
    if isinstance(value, str | bytes):
        return len(value)
    weight, waiting = 0, [value]
    while waiting and weight <= LARGEST >= len(waiting):
        one = waiting.pop()
        weight += len(one) if isinstance(one, str | bytes) else 1
        waiting += _inside(one)
        BUDGET.take(1)
    return weight + len(waiting)


def _inside(value: Any) -> Iterable[Any]:
    """What is written where the value is."""
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
        return value
    return ()


def check_filter(
    name: str, value: Any, given: Sequence[Any], before: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """Raise TemplateLimitError for a filter that would do too much; returns its value, read if it was a generator."""
    if name in ("join", "sum"):
        return _check_joined(name, list(value), given, before, named)
    if name not in _SHALLOW:
        BUDGET.take(_weight(value) // _PIECE)
    if name in _SLOW and _weight(value) > _LONGEST_INPUT:
        raise TemplateLimitError(f"it has a text of more than {_LONGEST_INPUT:,} characters for {name}")
    if name == "tojson":
        parts = [part for one in given for part in (one if isinstance(one, list | tuple) else [one])]
        if any((len(one) if isinstance(one, str) else one or 0) > _LONGEST_PART for one in parts):
            raise TemplateLimitError(
                f"tojson is to write more than {_LONGEST_PART} characters between two values"
            )
    elif name == "format":
        _check_format(str(value), given)
    elif name in ("indent", "replace", "center", "wordwrap", "truncate", "batch", "slice", "round"):
        if isinstance(value, str):
            _check_method(name, value, given)
        _check_numbers(given)
    return value


def _check_joined(
    name: str, value: list[Any], given: Sequence[Any], before: Sequence[Any], named: Mapping[str, Any]
) -> list[Any]:
    """The same for `join` and `sum`, of a list or of an attribute of each of its items."""
    attribute = named.get("attribute", given[1] if name == "join" and len(given) > 1 else None)
    attribute = given[0] if name == "sum" and given and "attribute" not in named else attribute
    parts = value
    if attribute is not None and before:
        environment = getattr(before[0], "environment", before[0])
        parts = list(map(make_attrgetter(environment, attribute), value))
    copies = (
        len(parts) // 2 + 1 if name == "sum" and not all(isinstance(p, int | float) for p in parts) else 1
    )
    between = max((len(one) for one in given if isinstance(one, str)), default=0) * len(parts)
    BUDGET.make(sum(map(_weight, parts)) * copies + between)
    return value


def _check_method(name: str, text: Any, given: Sequence[Any]) -> None:
    """Before a method of a text, or the filter of its name, is called."""
    size, sizes = len(text), [len(one) if isinstance(one, str | bytes) else one for one in given]
    numbers = [abs(one) for one in sizes if isinstance(one, int)]
    if name == "replace" and len(given) > 1 and _sized(given[0]) and _sized(given[1]):
        size += text.count(given[0]) * len(given[1])
    elif name in ("indent", "expandtabs", "wordwrap"):
        size += (text.count("\n" if name == "indent" else "\t") + 1) * max(numbers, default=8)
    elif name == "join" and given:
        size = size * (len(given[0]) if isinstance(given[0], Sized) else 1) + _weight(given[0])
    elif name == "translate" and given and isinstance(given[0], Mapping):
        size *= max(map(_weight, given[0].values()), default=1)
    elif name in ("center", "ljust", "rjust", "zfill"):
        size = max(size, *numbers)
    BUDGET.make(size)


def _check_numbers(given: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > LARGEST for one in given):
        raise TemplateLimitError(f"a number over {LARGEST:,} is to be a size")


def _check_format(text: str, given: Sequence[Any]) -> None:
    """Before values are put into a text with `%` or `{}`: widths, and how often a value may be written."""
    if _WIDTH.search(text):
        raise TemplateLimitError("it writes a value wider than 9,999 characters")
    if "*" in text or _NESTED.search(text):  # widths among the values
        for one in _flat(given):
            if (isinstance(one, int) and abs(one) > 9_999) or (
                isinstance(one, str) and re.search(r"\d{5}", one)
            ):
                raise TemplateLimitError("it writes a value wider than 9,999 characters")
    BUDGET.make(len(text) + (text.count("%") + text.count("{")) * max(map(_weight, given), default=0))


def _flat(given: Sequence[Any]) -> Iterator[Any]:
    for one in given:
        if isinstance(one, tuple | list):
            yield from one
        elif isinstance(one, Mapping):
            yield from one.values()
        else:
            yield one


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for one, count in ((left, right), (right, left)):
        if _sized(one) and isinstance(count, int):
            BUDGET.make(_size(one) * max(0, count))


def _check_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise TemplateLimitError(f"it makes a whole number of {bits:,} bits")


def _sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _size(value: Any) -> int:
    """What a text or list counts as when another is made of it."""
    return len(value) * (1 if isinstance(value, str | bytes) else _ITEM)
