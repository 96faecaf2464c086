import math

import pytest

from proxlm.runlog.text import duration, headline_and_more, number, sparkline


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (38.2, "38s"),
        (59.6, "1m 00s"),
        (338, "5m 38s"),
        (308, "5m 08s"),
        (3599.7, "1h 00m"),
        (7500, "2h 05m"),
        (86399.9, "1d 00h"),
        (183600, "2d 03h"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.4123, "0.412"),
        (3.214, "3.21"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.6, "1,235"),
        (-1.9, "-1.90"),
        (0.000025, "2.5e-05"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_sparkline_of_fewer_values_than_characters_shows_each() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 1, 2], 3) == "█▁▅"


def test_sparkline_of_more_values_averages_groups() -> None:
    # Groups (0, 2), (4, 6), (8, 10): means 1, 5, 9.
    assert sparkline([0, 2, 4, 6, 8, 10], 3) == "▁▅█"
    assert len(sparkline([math.sin(i) for i in range(1000)], 37)) == 37


def test_sparkline_of_equal_no_and_not_finite_values() -> None:
    assert sparkline([2.0, 2.0], 5) == "▄▄"
    assert sparkline([], 5) == ""
    assert sparkline([1.0], 0) == ""
    assert sparkline([math.nan, math.inf], 5) == "  "
    assert sparkline([0, math.nan, 1], 5) == "▁ █"
    assert sparkline([0, math.nan, 8, 8], 2) == "▁█"
    assert sparkline([-1.7e308, 1.7e308], 2) == "▁█"


def test_headline_comes_first_and_what_is_absent_is_left_out() -> None:
    latest = {"entropy": 1.9, "kl": 3.21, "reward": 0.412}
    shown = headline_and_more(latest, ("reward", "kl"), ("entropy", "clip_fraction", "kl"))
    assert list(shown.items()) == [("reward", "0.412"), ("kl", "3.21"), ("entropy", "1.90")]
