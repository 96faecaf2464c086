"""docs/glossary.md and CONTRIBUTING.md name only files that exist and names that can be imported."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from markdown_blocks import PAGES, ROOT

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "proxlm"

FILES = sorted(set(re.findall(r"`((?!tests/)[a-z_]+(?:/[a-z_]+)*\.py)(?::\w+)?`", GLOSSARY)))
NAMES = sorted(set(re.findall(r"`([a-z_/]+\.py):(\w+)`", GLOSSARY)))


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40
    assert len(NAMES) > 20


@pytest.mark.parametrize("file", FILES)
def test_files_exist(file: str) -> None:
    assert (SOURCE / file).is_file()


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_names_are_importable(file: str, name: str) -> None:
    module = import_module("proxlm." + file.removesuffix(".py").replace("/", "."))
    assert hasattr(module, name)


# Of other projects, or a placeholder.
FOREIGN = ("cleanrl/", "trl/", "utils/core.py", "path/to/")


# The log keeps the names of its day; the changelog is a table of old names.
@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "log.md"], ids=lambda p: p.name)
def test_paths_on_the_pages_exist(page) -> None:
    """Every `folder/file.py` in backticks: of the library, or of the repository."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = {
        path
        for quoted in re.findall(r"`([^`\n]+)`", text)
        for path in re.findall(r"(?<![\w/.])[a-z_]+(?:/[a-z_]+)+\.(?:py|toml|json|md)\b", quoted)
    }
    missing = {
        path
        for path in named
        if not path.startswith(FOREIGN)
        and not any((root / path).exists() for root in (ROOT, SOURCE, ROOT / "docs"))
    }
    assert missing == set()
