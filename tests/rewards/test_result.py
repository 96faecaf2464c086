import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.errors import RewardError
from proxlm.rewards.result import Component, UnusableResultError, read_result
from proxlm.types import Completion

TWO = [Completion("", "a b", (1, 2)), Completion("", "c d e", (3, 4, 5))]


def plain(result: Any) -> Component:
    parts = read_result(result, TWO)
    assert list(parts) == [""]
    return parts[""]


@pytest.mark.parametrize(
    "result",
    [
        [1, 0.5],
        (1.0, 0.5),
        [True, 0.5],
        [Fraction(1), Decimal("0.5")],
        np.array([1, 0.5]),
        [np.float32(1), np.float64(0.5)],
        torch.tensor([1, 0.5]),
        torch.tensor([1, 0.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1), torch.tensor(0.5)],
    ],
)
def test_every_kind_of_number_is_read(result: Any) -> None:
    assert plain(result) == Component([1.0, 0.5], None, {})


@pytest.mark.parametrize(
    "result",
    [
        [[1, 2], [0.25, 0.25, -1]],
        [torch.tensor([1, 2]), np.array([0.25, 0.25, -1])],
        ((1, 2), (0.25, 0.25, torch.tensor(-1))),
    ],
)
def test_token_rewards_are_flat_and_their_sums_stand_for_the_response(result: Any) -> None:
    assert plain(result) == Component([3.0, -0.5], [1, 2, 0.25, 0.25, -1], {})


def test_components_are_read_by_name() -> None:
    parts = read_result({"style": [1, 2], "steps": [[1, 1], [1, 1, 1]]}, TWO)
    assert parts == {"style": Component([1, 2], None, {}), "steps": Component([2, 3], [1] * 5, {})}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned None instead of a list with a number per completion"),
        (1.0, "returned a float instead of"),
        ("12", "returned a str ('12') instead of"),
        (iter([1, 2]), "returned a list_iterator instead of"),
        ({1.0, 2.0}, "returned a set instead of"),
        (torch.tensor(1.0), "returned a float instead of"),
        ([1], "returned 1 score for 2 completions"),
        ([1, 2, 3], "returned 3 scores for 2 completions"),
        ([], "returned 0 scores for 2 completions"),
        ({}, "returned a dict without components"),
        ({"": [1, 2]}, "returned a dict with the key ''; components need names"),
        ({3: [1, 2]}, "returned a dict with the key 3; components need names"),
        ({"a": [1]}, "returned 1 score in component 'a' for 2 completions"),
        ({"a": "xy"}, "returned a str ('xy') in component 'a' instead of"),
    ],
)
def test_a_result_that_says_nothing_about_the_rows_is_refused(result: Any, message: str) -> None:
    with pytest.raises(UnusableResultError) as raised:
        read_result(result, TWO)
    assert str(raised.value).startswith(message)


class Stubborn:
    def __float__(self) -> float:
        raise RuntimeError("will not")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (math.nan, "returned nan for completion 1"),
        (math.inf, "returned inf for completion 1"),
        (-math.inf, "returned -inf for completion 1"),
        (torch.tensor(math.nan), "returned nan for completion 1"),
        (1e39, "returned 1e+39 (too large for float32) for completion 1"),
        (10**400, "returned an int (int too large to convert to float) for completion 1"),
        ("0.5", "returned a str ('0.5') for completion 1"),
        (1j, "returned a complex for completion 1"),
        ({"a": 1}, "returned a dict for completion 1"),
        (Stubborn(), "returned a Stubborn (will not) for completion 1"),
        (RewardError("no field"), "failed for completion 1: no field"),
        (ValueError("no"), "failed for completion 1: ValueError: no"),
    ],
)
def test_a_bad_row_is_marked_and_spares_the_others(bad: Any, message: str) -> None:
    part = plain([1, bad])
    assert part.problems == {1: message}
    assert part.values[0] == 1
    assert math.isnan(part.values[1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1, 2], "returned 2 token rewards instead of 3 for completion 1"),
        ([1], "returned 1 token reward instead of 3 for completion 1"),
        ([1, math.nan, 2], "returned nan for completion 1"),
        ([1, "2", 2], "returned a str ('2') for completion 1"),
        ([1, None, 2], "returned None for completion 1"),
        (0.5, "returned a float, where others have a list of token rewards, for completion 1"),
        (ValueError("no"), "failed for completion 1: ValueError: no"),
    ],
)
def test_a_bad_row_of_token_rewards_is_zero_and_marked(bad: Any, message: str) -> None:
    part = plain([[1, 1], bad])
    assert part.problems == {1: message}
    assert part.per_token == [1, 1, 0, 0, 0]
    assert part.values[0] == 2
    assert math.isnan(part.values[1])


@given(st.lists(st.floats(width=32), max_size=8))
def test_a_row_is_marked_exactly_if_it_is_not_finite(values: list[float]) -> None:
    part = read_result(values, [Completion("", "")] * len(values))[""]
    assert set(part.problems) == {i for i, v in enumerate(values) if not math.isfinite(v)}
    assert [v for v in part.values if math.isfinite(v)] == [v for v in values if math.isfinite(v)]
