"""A short run of benchmarks/fuzz.py, and what longer ones have found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz

    return fuzz


def test_generated_input_raises_user_errors_alone(harness: Any) -> None:
    for name in harness.TARGETS:
        tried, refused = harness.fuzz(name, 40 if name == "values" else 100, start=1)
        assert tried >= 40, name
        assert refused > 0, name
