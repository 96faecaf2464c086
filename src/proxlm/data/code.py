"""The demo's text: single-line statements of Python's standard library, and prefixes of them to complete."""

from __future__ import annotations

import ast
import io
import os
import random
import sysconfig
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path

from proxlm.errors import DataError
from proxlm.files import read_regular
from proxlm.seeds import Purpose, derive_seed

_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
_SHORTEST, _LONGEST = 15, 100


def python_statements(limit: int | None = None, seed: int = 0) -> list[str]:
    """One-line statements in the source of the running Python's standard library, sorted and without repeats.

    They are simple statements (assignments, calls, returns, imports ...) of 15 to 100 characters, without
    indentation or comments; docstrings and the library's tests are left out.

    Args:
        limit: How many to draw from them; None: all.
        seed: Of the draw.

    Raises:
        DataError: The library's source is not installed.
    """
    found: set[str] = set()
    library = Path(sysconfig.get_path("stdlib"))
    for parent, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in names:
            if name.endswith(".py"):
                found.update(_statements_of(Path(parent) / name))
    if not found:
        raise DataError(
            f"{library}: no Python source found; this Python was installed without its library's source"
        )
    statements = sorted(found)
    if limit is not None and limit < len(statements):
        statements = sorted(random.Random(derive_seed(seed, Purpose.STATEMENTS)).sample(statements, limit))
    return statements


def completion_prefixes(statements: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` different prefixes of statements, none of which parses.

    Each is cut at the end of a Python token, between 30% and 70% of its statement, inside a bracket or after
    an operator for instance, so that something is left to complete. Raises DataError if the statements yield fewer.
    """
    chance = random.Random(derive_seed(seed, Purpose.PREFIXES))
    order = list(statements)
    chance.shuffle(order)
    prefixes: dict[str, None] = {}
    for statement in order:
        if len(prefixes) == count:
            break
        low, high = 0.3 * len(statement), 0.7 * len(statement)
        cuts = [cut for cut in _token_ends(statement) if low <= cut <= high and not _parses(statement[:cut])]
        if cuts:
            prefixes.setdefault(statement[: chance.choice(cuts)])
    if len(prefixes) < count:
        raise DataError(
            f"{len(statements)} statements give only {len(prefixes)} different prefixes of the {count} needed"
        )
    return list(prefixes)


def _statements_of(file: Path) -> list[str]:
    try:
        source = read_regular(file, 2**26).decode()
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in old code
            tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return []  # deliberately broken files, and encodings other than UTF-8
    lines = io.StringIO(source, newline=None).read().split("\n")
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or node.lineno != node.end_lineno or hasattr(node, "body"):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        line = lines[node.lineno - 1].strip()
        alone = len(line.encode()) == (node.end_col_offset or 0) - node.col_offset
        if alone and _SHORTEST <= len(line) <= _LONGEST:
            found.append(line)
    return found


def _token_ends(statement: str) -> list[int]:
    """Where the statement's tokens end, except inside an f-string, which is one token before Python 3.12."""
    ends = []
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(statement).readline):
        name = tokenize.tok_name[token.type]
        depth += name.endswith("STRING_START") - name.endswith("STRING_END")
        if depth == 0 and token.string.strip():
            ends.append(token.end[1])
    return ends


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True
