from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rewards.numeric import last_number, marked_number, to_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 6*7 = 42\n#### 42", "42"),
        ("####42", "42"),
        ("#### 1,234,567", "1234567"),
        ("#### $1,234.50", "1234.5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### +7", "7"),
        ("#### −3.0", "-3"),
        ("#### .5", "0.5"),
        ("#### 18 dollars", "18"),
        ("#### 18.", "18"),
        ("#### 18, so that is it", "18"),
        ("#### 50%", "50"),
        ("#### 1e3", "1000"),
        ("#### ¥300元", "300"),
        ("#### 1\n#### 2", "2"),
        ("##### 9", "9"),
    ],
)
def test_number_after_the_last_mark(text: str, value: str) -> None:
    assert marked_number(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    [
        "42",
        "",
        "####",
        "#### x = 5",
        "#### five",
        "#### 1,2345",
        "#### 12,34",
        "#### 1.2.3",
        "#### 1/2",
        "#### 5\n#### none",
    ],
)
def test_no_number_rather_than_part_of_one(text: str) -> None:
    assert marked_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("first 3, then 4.", "4"),
        ("7-2", "2"),
        ("it fell to -2 degrees", "-2"),
        ("costs $1,000.25!", "1000.25"),
        ("(3)-1", "1"),
        ("version 1,2345", None),
        ("a 3/4 share", None),
        ("none", None),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    assert last_number(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (18, "18"),
        (0.1, "0.1"),
        ("18", "18"),
        (" $1,000 ", "1000"),
        ("4*2=<<4*2=8>>8\n#### 8", "8"),
        ("8 eggs", None),
        (True, None),
        (float("nan"), None),
        (None, None),
        ([8], None),
    ],
)
def test_a_records_answer(answer: object, value: str | None) -> None:
    assert to_number(answer) == (None if value is None else Decimal(value))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**12), max_value=10**12))
def test_a_number_reads_the_same_with_and_without_thousands_groups(number: Decimal) -> None:
    assert marked_number(f"#### {number:,f}") == number
    assert marked_number(f"#### {number:f}") == number
    assert last_number(f"is {number:,f}.") == number


@given(st.text(alphabet="0123456789.,$-+eE#/ a"))
def test_no_text_raises(text: str) -> None:
    for read in (marked_number, last_number, to_number):
        assert read(text) is None or isinstance(read(text), Decimal)
