"""A reward that is None, and records that a reward changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from reward_helpers import THREE, own_folder, score, write

from proxlm.config.schema import RewardSettings, RewardTerm
from proxlm.rewards import build_reward
from proxlm.types import Completion


def shown(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


@pytest.mark.parametrize(
    ("result", "total"),
    [
        ([1, None, 2], [1, None, 2]),
        ([None, None, None], [None, None, None]),
        ({"a": [1, None, None], "b": [2, 3, None]}, [3, 3, None]),
        ([[1, 1], None, [1, 1, 1]], [0, None, 0]),  # on tokens
    ],
)
def test_none_is_no_reward(result: Any, total: list[float | None]) -> None:
    scores = score(result)
    assert shown(scores.total.tolist()) == total
    assert scores.scored.tolist() == [value is not None for value in total]
    assert scores.failed == 0


def test_parts_that_are_none_do_not_count() -> None:
    scores = score({"a": [1, None, 2], "b": [None, None, 5]}, weights={"b": 0.5})
    assert shown(scores.total.tolist()) == [1, None, 4.5]
    assert shown(scores.components["a"]) == [1, None, 2]
    weightless = score({"a": [1, None, 2], "b": [0, 0, 0]}, weights={"b": 0.0})
    assert shown(weightless.total.tolist()) == [1, None, 2]


def test_a_failure_is_not_none() -> None:
    scores = score([None, math.nan, 2], on_error="score", error_score=-1.0)
    assert shown(scores.total.tolist()) == [None, -1, 2]
    assert scores.failed == 1


def test_none_from_another_process_and_in_one_of_several_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_folder(tmp_path, monkeypatch)
    write("r.py", "def a(cs): return [None, 1, None]\ndef b(cs): return [1, None, None]\n")
    terms = {name: RewardTerm(use=f"r.py:{name}") for name in "ab"}
    for isolate in (False, True):
        scores = build_reward(RewardSettings(terms=terms, isolate=isolate)).score(THREE)
        assert shown(scores.total.tolist()) == [1, 1, None]


def test_what_a_reward_writes_into_a_record_does_not_stay() -> None:
    record = {"answer": "4", "notes": [{"seen": 0}], "deep": {"list": [1]}}
    completions = [Completion("p", text, fields=record) for text in ("4", "5")]

    def spoil(completions: list[Completion]) -> list[float]:
        values = [float(c.text == c.fields.pop("answer")) for c in completions]  # type: ignore[attr-defined]
        for c in completions:
            c.fields["notes"][0]["seen"] += 1
            c.fields["deep"]["list"].clear()
        return [value + c.fields["notes"][0]["seen"] for value, c in zip(values, completions, strict=True)]

    reward = build_reward(RewardSettings(), [spoil, lambda cs: [len(c.fields["deep"]["list"]) for c in cs]])
    for _ in range(2):
        assert reward.score(completions).total.tolist() == [3, 2]
    assert record == {"answer": "4", "notes": [{"seen": 0}], "deep": {"list": [1]}}


def test_fields_of_built_in_rewards_may_be_paths() -> None:
    completion = Completion("", "#### 7", fields={"data": {"answer": "7"}, "x.y": "#### 7"})
    for use, field in [("numeric_answer", "data.answer"), ("exact_match", "x.y"), ("numeric_answer", "x.y")]:
        reward = build_reward(RewardSettings(use=use, args={"field": field}))
        assert reward.score([completion]).total.tolist() == [1]
