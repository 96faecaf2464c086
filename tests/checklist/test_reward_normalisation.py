"""Section 5, item 28: several rewards, each normalised by itself before it is weighted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.shaping import normalised_sum

NAN = math.nan
ONE_GROUP = torch.zeros(3, dtype=torch.int64)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.checklist(28)
def test_by_hand():
    """Rewards 1, 2, 3 (std 1) and 0, 0, 30 (mean 10, std √300), weights 2 and −1."""
    found = normalised_sum(f64([[1, 2, 3], [0, 0, 30]]), f64([2, -1]), ONE_GROUP, 0.0)
    third = 10 / math.sqrt(300)
    assert found.tolist() == pytest.approx([-2 + third, third, 2 - 2 * third])
    # eps is added to the deviation, not to the variance.
    one = normalised_sum(f64([[1, 2, 3]]), f64([1]), ONE_GROUP, 1.0)
    assert one.tolist() == pytest.approx([-0.5, 0.0, 0.5])
    usual = normalised_sum(f64([[1e-6, 2e-6, 3e-6]]), f64([1]), ONE_GROUP)
    assert usual.tolist() == pytest.approx([-0.5, 0.0, 0.5])


@pytest.mark.checklist(28)
def test_groups_are_apart_and_what_is_missing_counts_nowhere():
    components = f64([[1, 3, 10, 30, 5], [NAN, 4, 6, NAN, NAN], [7, 7, 7, 7, 7]])
    groups = torch.tensor([0, 0, 1, 1, 2])
    found = normalised_sum(components, f64([1, 100, 100]), groups, 0.5)
    # √2 and 10 √2 are the deviations; alone in its group, or alike in it, a reward adds 0.
    small, large = 1 / (math.sqrt(2) + 0.5), 10 / (10 * math.sqrt(2) + 0.5)
    assert found.tolist() == pytest.approx([-small, small, -large, large, 0.0])
    with_a_gap = normalised_sum(f64([[1, NAN, 3]]), f64([1]), ONE_GROUP, 0.0)
    assert with_a_gap.tolist() == pytest.approx([-1 / math.sqrt(2), 0.0, 1 / math.sqrt(2)])


@pytest.mark.checklist(28)
@given(
    st.lists(st.floats(-9, 9), min_size=4, max_size=4),
    st.floats(0.5, 100),
    st.floats(-50, 50),
    st.floats(-3, 3),
)
def test_the_unit_and_the_offset_of_a_reward_do_not_matter(rewards, unit, offset, weight):
    x = f64([rewards])
    if float(x.std()) < 0.1:
        return
    groups = torch.zeros(4, dtype=torch.int64)
    wanted = normalised_sum(x, f64([weight]), groups, 0.0)
    assert torch.allclose(normalised_sum(unit * x + offset, f64([weight]), groups, 0.0), wanted, atol=1e-8)
    assert float(wanted.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(wanted.std()) == pytest.approx(abs(weight), abs=1e-9)
