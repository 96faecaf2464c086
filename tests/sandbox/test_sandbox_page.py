"""What docs/sandbox.md shows and counts is so."""

from __future__ import annotations

import doctest
import re
from dataclasses import fields
from pathlib import Path

import cheats
import pytest
from hostile import HOSTILE
from hostile_calls import CALLS, MEMORY
from test_solution_and_tests import CHEATS, ENDS

from proxlm.sandbox import STATUSES, Limits, isolation
from proxlm.sandbox.syscalls import ALWAYS, CONDITIONAL, WITH_FOLDER

PAGE = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")


@pytest.mark.skipif(isolation().landlock == 0, reason="needs Linux with Landlock")
def test_the_session_prints_what_the_page_shows() -> None:
    (session,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest(session, {}, "sandbox.md", "docs/sandbox.md", 0)
    assert len(test.examples) >= 6
    assert doctest.DocTestRunner().run(test).failed == 0


def test_numbers_and_names_on_the_page() -> None:
    assert f"{len(HOSTILE)} hostile programs" in PAGE
    assert f"{len(MEMORY) + len(CALLS)} more that try single system calls" in PAGE
    assert f"{len(CHEATS) + len(ENDS)} + {len(cheats.CHEATS)} programs that cheat" in PAGE
    (calls,) = set(re.findall(r"[Aa]bout (\d+) system calls", PAGE))
    aarch64 = sum(n[1] >= 0 for table in (ALWAYS, WITH_FOLDER, CONDITIONAL) for n in table.values())
    x86_64 = sum(n[0] >= 0 for table in (ALWAYS, WITH_FOLDER, CONDITIONAL) for n in table.values())
    assert aarch64 - 5 <= int(calls) <= x86_64 + 5
    assert all(f"`{one.name}`" in PAGE for one in fields(Limits))
    assert all(f"`{status}`" in PAGE for status in STATUSES)
