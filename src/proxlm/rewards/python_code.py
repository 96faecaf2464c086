"""Whether a completion turns a prefix into Python that parses, without a trivial way of doing so."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

_OPENS = {getattr(tokenize, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(tokenize, name)}
_CLOSES = {getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name)}
_QUOTE = re.compile(r"""[A-Za-z]*(\"{3}|'{3}|"|')""")


class PythonParse(NamedTuple):
    """Whether `ast` accepts prefix + completion, and the first guard that failed, or ""."""

    parses: bool
    guard: str


class _Token(NamedTuple):
    kind: int
    text: str
    start: int
    end: int


def python_parse_report(
    prefix: str,
    completion: str,
    *,
    min_tokens: int = 3,
    min_names: int = 1,
    max_string: int = 40,
    single_line: bool = True,
) -> PythonParse:
    """Parse prefix + completion, and check that the completion adds something. Never raises.

    The guards, in the order in which they are checked:

    - "empty": the completion is empty or white space.
    - "line": with `single_line`, it holds a newline, or a ";" that separates statements.
    - "comment": it contains a comment or continues one.
    - "string": more than `max_string` of its characters are inside string literals.
    - "tokens": fewer than `min_tokens` names, numbers, strings and operators begin in it.
    - "names": fewer than `min_names` of those are names (keywords too), numbers or strings.

    If the text does not parse, only "empty" and newlines are checked.
    """
    prefix, completion = _newlines(prefix), _newlines(completion)
    guard = ""
    if not completion.strip():
        guard = "empty"
    elif single_line and "\n" in completion:
        guard = "line"
    source = prefix + completion
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in a model's text are not reported
        try:
            ast.parse(source)
        except Exception:  # SyntaxError, but also null bytes, lone surrogates, and nesting beyond the stack
            return PythonParse(False, guard)
        try:
            tokens = [t for t in _tokens(source) if t.end > len(prefix)]
        except (tokenize.TokenError, SyntaxError):
            return PythonParse(True, guard or "tokens")
    return PythonParse(
        True, guard or _failed_guard(tokens, len(prefix), min_tokens, min_names, max_string, single_line)
    )


def _failed_guard(
    tokens: list[_Token], border: int, min_tokens: int, min_names: int, max_string: int, single_line: bool
) -> str:
    """The first guard that fails; tokens: those that end after `border`, where the completion begins."""
    begun = [t for t in tokens if t.start >= border]
    names = sum(t.kind in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING) for t in begun)
    added = names + sum(t.kind == tokenize.OP for t in begun)
    if single_line and any(t.kind == tokenize.OP and t.text == ";" for t in begun):
        return "line"
    if any(t.kind == tokenize.COMMENT for t in tokens):
        return "comment"
    if sum(_characters_inside(t, border) for t in tokens if t.kind == tokenize.STRING) > max_string:
        return "string"
    if added < min_tokens:
        return "tokens"
    return "names" if names < min_names else ""


def _characters_inside(token: _Token, border: int) -> int:
    """How many of the completion's characters are between the quotes of a string literal."""
    opening = _QUOTE.match(token.text)
    if opening is None:
        return 0
    first, last = token.start + opening.end(), token.end - len(opening[1])
    return max(0, last - max(first, border))


def _tokens(source: str) -> Iterator[_Token]:
    """The tokens with their offsets in `source`; an f-string is one STRING in every version of Python."""
    line_starts = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
    depth, opened = 0, 0
    for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(source).readline):
        first, last = line_starts[start[0] - 1] + start[1], line_starts[end[0] - 1] + end[1]
        if kind in _OPENS:
            opened, depth = (first if depth == 0 else opened), depth + 1
        elif kind in _CLOSES:
            depth -= 1
            if depth == 0:
                yield _Token(tokenize.STRING, source[opened:last], opened, last)
        elif depth == 0 or kind == tokenize.COMMENT:
            yield _Token(kind, text, first, last)


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
