"""A short run of benchmarks/fuzz.py, and what longer ones have found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxlm.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    return fuzz


def test_generated_input_raises_user_errors_alone(harness: Any) -> None:
    for name in harness.TARGETS:
        tried, refused = harness.fuzz(name, 40 if name == "values" else 80, start=1)
        assert tried >= 40, name
        assert refused > 0, name


# target → an input that once raised something else, or was told in more than one line
FOUND = [
    ("arguments", ("control", ["", "\0"])),
    ("arguments", ("ppo", ["x" * 300])),
    ("arguments", ("demo", ["\n"])),
    ("state", b'{"_data_files": [{"filename": "da\\ud800ta.arrow"}]}'),
    ("values", {"x\ny": 1}),
    ("jsonl", b'{"a\\nb": 1, "a\\nb": 2}'),
    ("csv", b'"a\nb",c\n\xff,1\n'),
]


@pytest.mark.parametrize(("name", "value"), FOUND)
def test_what_was_found(harness: Any, tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        harness.TARGETS[name].feed(value, tmp_path)
    assert "\n" not in str(caught.value)
