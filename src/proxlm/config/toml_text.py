"""TOML within bounds: how large a recipe may be, and how deep what it says may be nested.

Python's parser takes time quadratic in the parts of a dotted key, and settings are handled by recursion; so both
depths are looked at first, in one pass over the text.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from proxlm.errors import ConfigError
from proxlm.files import read_regular
from proxlm.text import shown, system_reason

LARGEST_RECIPE = 2**20
"""Bytes of a recipe."""

CONFIG_NAME = "config.toml"
"""The settings that a run's folder holds."""

DEEPEST = 64
"""Tables and lists in one another, and parts of a dotted key."""

# A string, closed or not (then to the end of its line or of the text), or a comment.
_QUOTED = re.compile(
    r'"""(?:[^\\"]|\\.|"(?!""))*(?:"""|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*(?:"|$)'
    r"|'[^'\n]*(?:'|$)"
    r"|#[^\n]*",
    re.DOTALL | re.MULTILINE,
)


class TooDeepError(ValueError):
    """Tables, lists or keys are nested more deeply than settings ever are."""


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file's contents. Raises ConfigError that names the file, and the line where there is one."""
    try:
        data = read_regular(file, LARGEST_RECIPE, pipe=True)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except IsADirectoryError:
        hint = f"; did you mean {file / CONFIG_NAME}?" if (file / CONFIG_NAME).is_file() else ""
        raise ConfigError(f"{file}: a folder, but a TOML file is needed{hint}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {system_reason(error)}") from None
    except ValueError:
        raise ConfigError(f"{str(file)!a}: not a path") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: not UTF-8 text") from None
    try:
        return parse_toml(text)
    except TooDeepError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except ValueError as error:
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line_number = (place and place[1]) or str(text.count("\n") + 1)
        reason = str(error)[: place.start()] if place else str(error)
        raise ConfigError(f"{file}: line {line_number}: not valid TOML: {shown(reason, 200)}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """A TOML text as a table. Raises ValueError, as tomllib does; TooDeepError is one."""
    _check_depth(text)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TooDeepError("nested too deeply") from None


def _check_depth(text: str) -> None:
    bare = _QUOTED.sub(lambda found: "" if found[0].startswith("#") else "s", text)
    depth = 0
    for found in re.finditer(r"[\[\]{}]", bare):
        depth = depth + 1 if found[0] in "[{" else max(0, depth - 1)
        if depth > DEEPEST:
            raise TooDeepError(f"nested too deeply: more than {DEEPEST} lists and tables in one another")
    if "s." * DEEPEST in re.sub(r"[ \t]+", "", re.sub(r"[\w-]+", "s", bare)):
        raise TooDeepError(f"nested too deeply: a key of more than {DEEPEST} parts")
