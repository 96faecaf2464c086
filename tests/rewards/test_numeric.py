from decimal import Decimal
from fractions import Fraction

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
        ("#### **72**", "72"),
        ("#### __72__", "72"),
        ("#### `72`", "72"),
        ("#### \\boxed{72}", "72"),
        ("#### $\\boxed{72}$", "72"),
        ("#### \\(72\\)", "72"),
        ("#### $72$", "72"),
        ("#### \\$72", "72"),
        ("#### **$1,072.50**", "1072.5"),
        ("#### \\text{72}", "72"),
        ("#### 72 ####", "72"),
        ("#### 72\n####", "72"),
        ("#### 72\\%", "72"),
        ("#### = 72", "72"),
        ("####: 72", "72"),
        ("#### ７２", "72"),
        ("＃### 1\n#### －７２％", "-72"),
        ("#### ￥１，２３４．５", "1234.5"),
        ("#### ٧٢", "72"),
        ("#### 1{,}234", "1234"),
        ("#### 1\\,234", "1234"),
        ("#### 1/2", "1/2"),
        ("#### -1/2", "-1/2"),
        ("#### 3 / 4 of it", "3/4"),
        ("#### 1 1/2", "3/2"),
        ("#### -1 1/2", "-3/2"),
        ("#### \\frac{1}{2}", "1/2"),
        ("#### $-\\frac{1}{2}$", "-1/2"),
        ("#### \\boxed{\\dfrac{7}{2}}", "7/2"),
        ("#### 1\\frac12", "3/2"),
        ("#### ½", "1/2"),
        ("#### 1½", "3/2"),
        ("#### 2/4", "0.5"),
        ("#### 0.333", "0.333"),
    ],
)
def test_number_after_the_last_mark(text: str, value: str) -> None:
    assert marked_number(text) == Fraction(value)


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
        "#### 1/2/3",
        "#### 1/0",
        "#### 7^2",
        "#### 7²",
        "#### 7**2",
        "#### 7_000",
        "#### \\frac{x}{2}",
        "#### " + "9" * 5000,
        "#### 1/" + "9" * 5000,
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
        ("a 3/4 share", "3/4"),
        ("on 3/4/2026", None),
        ("一共 ７２ 元", "72"),
        ("so \\boxed{7} it is", "7"),
        ("none", None),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    assert last_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (18, "18"),
        (0.1, "0.1"),
        ("18", "18"),
        (" $1,000 ", "1000"),
        ("4*2=<<4*2=8>>8\n#### 8", "8"),
        ("72%", "72"),
        ("1/2", "1/2"),
        ("$\\frac{1}{2}$", "1/2"),
        ("**72**.", "72"),
        ("\\boxed{72}", "72"),
        ("７２％", "72"),
        (Decimal("7.50"), "7.5"),
        (10**30, "1e30"),
        ("8 eggs", None),
        ("7 or 8", None),
        (float("inf"), None),
        (True, None),
        (float("nan"), None),
        (None, None),
        ([8], None),
    ],
)
def test_a_records_answer(answer: object, value: str | None) -> None:
    assert to_number(answer) == (None if value is None else Fraction(value))


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_a_fraction_is_its_exact_value(over: int, under: int) -> None:
    assert marked_number(f"#### {over}/{under}") == Fraction(over, under)
    assert to_number(f"$\\frac{{{over}}}{{{under}}}$") == Fraction(over, under)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**12), max_value=10**12))
def test_a_number_reads_the_same_with_and_without_thousands_groups(number: Decimal) -> None:
    assert marked_number(f"#### {number:,f}") == Fraction(number)
    assert marked_number(f"#### **{number:f}**") == Fraction(number)
    assert last_number(f"is {number:,f}.") == Fraction(number)


@given(st.text(alphabet="0123456789.,$-+eE#/ a\\{}()*_%^½７frac"))
def test_no_text_raises(text: str) -> None:
    for read in (marked_number, last_number, to_number):
        assert read(text) is None or isinstance(read(text), Fraction)


@pytest.mark.parametrize(
    "piece", ["1,", "1 ", "1/", "7", "$", "\\frac{", "#### 1 ", "½", "1 1/", "{,}", "**"]
)
def test_numbers_are_read_from_long_texts(piece: str) -> None:
    """Patterns that backtrack over a whole text for each of its characters would not end here."""
    text = "#### " + piece * 100_000
    for read in (marked_number, last_number, to_number):
        read(text)
