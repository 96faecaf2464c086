"""One JSON list of objects, read element by element."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxlm.data.lines import LONGEST_LINE, pieces, shown_size
from proxlm.errors import DataError
from proxlm.text import shown

_AT_ONCE = 2**16
_SPACE = re.compile(r"[ \t\n\r]*")
# An error this close to the end of what has been read may only mean that the text continues.
_NEAR_END = 20


@dataclass(frozen=True)
class Element:
    """An element of the list.

    Attributes:
        value: The element.
        line: The line on which it begins.
        source: Its text; bytes that are not UTF-8 are lone surrogates in it.
        problem: Why it cannot be used; empty if it can.
    """

    value: Any
    line: int
    source: str
    problem: str = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without its nulls (fields.without_nulls says why).

    Raises ValueError for a repeated key, whose first value would otherwise be lost silently.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f'duplicate key "{shown(name)}" in an object')
            seen.add(name)
    return {name: value for name, value in pairs if value is not None}


# What handles records further on, by recursion, has room for this.
DEEPEST = 100

DECODER = json.JSONDecoder(object_pairs_hook=_object)
# Finds the end of an element that DECODER refuses because of its content, not its syntax.
_LENIENT = json.JSONDecoder(parse_int=str)


def json_reason(error: Exception) -> str:
    """Why a text is not JSON, without the position."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


class JsonList:
    """The elements of the list in a .json file, read one at a time.

    Raises DataError if the file is not a list, or at a syntax error, after which elements cannot be told apart.

    Args:
        path: The file.
        longest: The most bytes of an element.
    """

    def __init__(self, path: Path, longest: int = LONGEST_LINE) -> None:
        self.path, self.longest = path, longest
        self._pieces = pieces(path)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._ended = "", False
        self._counted, self._line = 0, 1  # lines are counted up to a place in _text
        self._column = 0  # how many characters of the first line of _text have been dropped

    def __iter__(self) -> Iterator[Element]:
        at = self._skip_space(0)
        if at == len(self._text):
            return
        if self._text[at] != "[":
            raise DataError(
                f"{self.path}: must hold a list of objects; with an object per line, name it .jsonl"
            )
        at = self._skip_space(at + 1)
        while self._text[at : at + 1] != "]":
            at = self._drop(at)
            line = self._line_of(at)
            value, end, problem = self._element(at)
            yield Element(value, line, self._text[at:end], problem)
            last_line = self._line_of(end)
            at = self._skip_space(end)
            follows = self._text[at : at + 1]
            if follows == ",":
                at = self._skip_space(at + 1)
            elif follows != "]":
                raise DataError(f"{self.path}:{last_line}: not valid JSON: expected , or ] after the element")
        at = self._skip_space(at + 1)
        if at < len(self._text):
            raise DataError(f"{self.path}:{self._line_of(at)}: text after the end of the list")

    def _element(self, at: int) -> tuple[Any, int, str]:
        """The value at a position, where it ends, and why it cannot be used (empty if it can)."""
        decoder, problem = DECODER, ""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR_END
                if self._ended or not cut_off:
                    line = self._line_of(error.pos)
                    raise DataError(
                        f"{self.path}:{line}: not valid JSON: {error.msg} (column {self._column_of(error.pos)})"
                    ) from error
                if len(self._text) - at > self.longest:
                    raise DataError(
                        f"{self.path}:{self._line_of(at)}: the record is longer than {shown_size(self.longest)}"
                    ) from error
                self._more(at)
            except (ValueError, RecursionError) as error:
                if decoder is _LENIENT:
                    reason = f"{self.path}:{self._line_of(at)}: not valid JSON: {json_reason(error)}"
                    raise DataError(reason) from error
                decoder, problem = _LENIENT, json_reason(error)
            else:
                if end < len(self._text) or self._ended:
                    return value, end, problem
                self._more(at)  # a number may continue

    def _skip_space(self, at: int) -> int:
        while True:
            found = _SPACE.match(self._text, at)
            at = found.end() if found else at
            if at < len(self._text) or self._ended:
                return at
            at = self._drop(at)
            self._more(at)

    def _more(self, at: int) -> None:
        """Read more: as much as is held from `at` on, so that a long element is not parsed too often."""
        parts, wanted = [self._text], max(_AT_ONCE, len(self._text) - at)
        while wanted > 0 and not self._ended:
            piece = next(self._pieces, b"")
            self._ended = not piece
            parts.append(self._decoder.decode(piece, final=self._ended))
            wanted -= len(parts[-1])
        self._text = "".join(parts)

    def _drop(self, at: int) -> int:
        """Forget the text before `at` if there is much of it; returns the new position of `at`."""
        if at < max(_AT_ONCE, len(self._text) // 2):  # at least half each time: what is moved is never more
            return at
        self._line_of(at)
        newline = self._text.rfind("\n", 0, at)
        self._column = at - newline - 1 if newline >= 0 else self._column + at
        self._text, self._counted = self._text[at:], 0
        return 0

    def _line_of(self, at: int) -> int:
        if at < self._counted:
            return self._line - self._text.count("\n", at, self._counted)
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def _column_of(self, at: int) -> int:
        newline = self._text.rfind("\n", 0, at)
        return at - newline if newline >= 0 else self._column + at + 1


def nested_too_deeply(value: Any, source: str) -> bool:
    """Whether lists and objects are more than DEEPEST in one another. source: its JSON."""
    if source.count("[") + source.count("{") <= DEEPEST:
        return False
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, dict | list):
            if depth > DEEPEST:
                return True
            waiting += [(item, depth + 1) for item in (one.values() if isinstance(one, dict) else one)]
    return False
