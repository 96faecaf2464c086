"""Every fault in docs/faults.md names a test that is there, and every setting it says a resume may change is free."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_resume_settings import FREE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [
    line for line in PAGE.splitlines() if line.startswith("| ") and "| ---" not in line and "**" not in line
]


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_has_its_test(row):
    found = re.search(r"\| `(tests/\S+\.py)::(\w+)` \|$", row)
    assert found, row
    tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
    assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_list_of_free_settings_is_whole():
    listed = PAGE.split("## What a resume may change")[1].split("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+\.[a-z_]+|gif)`", listed)) - {"run.seed"} == FREE
