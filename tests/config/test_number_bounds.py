"""Every number of every job is one that torch can hold: in float32, or in 64 bits."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from proxlm.config import JOBS, load_config
from proxlm.config.setting import LARGEST_FLOAT32, SMALLEST_FLOAT32, Bounds
from proxlm.config.tree import is_section, kinds
from proxlm.errors import ConfigError


def numbers(section: Any, at: str = "") -> Iterator[tuple[str, type]]:
    """The keys of the numbers in a section, and their types."""
    for name, kind in kinds(section).items():
        if is_section(kind):
            yield from numbers(kind, f"{at}{name}.")
        elif kind in (int, float):
            yield f"{at}{name}", kind


SETTINGS = [(job, key, kind) for job in JOBS for key, kind in numbers(JOBS[job])]
FLOATS = [(job, key) for job, key, kind in SETTINGS if kind is float]


def test_the_bounds_are_those_of_float32() -> None:
    assert struct.unpack("f", struct.pack("f", LARGEST_FLOAT32)) == (LARGEST_FLOAT32,)
    assert struct.unpack("f", struct.pack("f", SMALLEST_FLOAT32)) == (SMALLEST_FLOAT32,)
    with pytest.raises(OverflowError):
        struct.pack("<f", LARGEST_FLOAT32 * 1.0001)
    assert Bounds().problem(-LARGEST_FLOAT32) is None
    assert Bounds().problem(math.nextafter(LARGEST_FLOAT32, math.inf)) is not None
    assert Bounds().problem(SMALLEST_FLOAT32) is None
    assert Bounds().problem(0.0) is None


@pytest.mark.parametrize("value", [1e308, 3.5e38, -3.5e38, 1e-320, -1e-300, 1e-39, math.inf, math.nan])
def test_no_float_setting_of_any_job_takes_what_float32_does_not_hold(value: float) -> None:
    assert len(FLOATS) > 100
    for job, key in FLOATS:
        with pytest.raises(ConfigError, match=rf"{key} = .*: must be"):
            load_config(job, overrides={key: value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**299])
def test_no_whole_number_of_any_job_is_beyond_64_bits(value: int) -> None:
    for job, key, kind in SETTINGS:
        if kind is int:
            with pytest.raises(ConfigError, match=rf"{key} = .*: must (be|fit)"):
                load_config(job, overrides={key: value})


def test_numbers_in_tables_have_the_same_bounds_and_arguments_of_a_reward_have_none() -> None:
    with pytest.raises(ConfigError, match=r"optim.policy.stages.100 = 1e\+300: must be between ±3.4e\+38"):
        load_config("ppo", overrides={"optim.policy.stages": {"100": 1e300}})
    with pytest.raises(ConfigError, match=r"reward.weights.a = 1e-310: must be 0 or at least 1.18e-38"):
        load_config("ppo", overrides={"reward.weights": {"a": 1e-310}})
    table = {"reward.use": "a.py:f", "reward.args": {"a": 1e300}, "model.policy": "m", "data.prompts": "p"}
    assert load_config("ppo", overrides=table).reward.args == {"a": 1e300}
