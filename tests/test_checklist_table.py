"""The table at the end of a test run: complete in one process and over several, and honest about what failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checklist_table import ITEMS

TESTS = """
import pytest

from checklist_table import ITEMS

@pytest.mark.checklist(1)
@pytest.mark.parametrize("n", range(4))
def test_four(n): ...

@pytest.mark.checklist(2)
@pytest.mark.checklist(3)
def test_of_two_items(): ...

@pytest.mark.checklist(3)
def test_that_fails(): assert False

@pytest.mark.checklist(4)
def test_that_skips(): pytest.skip("not here")

@pytest.fixture
def broken(): raise ValueError

@pytest.mark.checklist(5)
def test_whose_fixture_fails(broken): ...

def test_of_no_item(): ...
"""


def table(folder: Path, source: str, *options: str) -> str:
    (folder / "test_it.py").write_text(source)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "checklist_table", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_items_tests_and_results(tmp_path, options):
    lines = re.findall(r"^ ?(\d+) .* (\d+) tests  (.*?) *$", table(tmp_path, TESTS, *options), re.MULTILINE)
    found = {int(number): (int(count), result) for number, count, result in lines}
    assert found[1] == (4, "passed   test_it.py")
    assert found[2] == (1, "passed   test_it.py")
    assert found[3] == (2, "failed: test_it.py::test_that_fails test_it.py")
    assert found[4] == (1, "skipped: test_it.py::test_that_skips test_it.py")
    assert found[5] == (1, "failed: test_it.py::test_whose_fixture_fails test_it.py")
    assert found[6] == (0, "not run")
    assert list(found) == list(range(1, len(ITEMS) + 1))


def test_an_item_that_the_checklist_does_not_have(tmp_path):
    source = "import pytest\n@pytest.mark.checklist(99)\ndef test_it(): ...\n"
    assert "test_it.py::test_it: the checklist has no item 99" in table(tmp_path, source)
