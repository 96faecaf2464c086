"""Section 1, item 13: slope and bias of the critic, and means by position."""

from __future__ import annotations

import math

import pytest
import torch
from advantage_cases import F, T, flat, quick, rows, true
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.calibration import calibration, mean_by_position
from proxlm.rl.ragged import part_of_row


@pytest.mark.checklist(13)
def test_slope_and_bias_by_hand():
    # V 0, 1, 2 and R 1, 1, 4: Cov = 3 / 3, Var = 2 / 3; means 1 and 2.
    assert calibration(flat(0, 1, 2), flat(1, 1, 4), true(3)) == pytest.approx((1.5, -1.0))
    assert calibration(flat(0, 1, 2), flat(0, 1, 2), true(3)) == (1.0, 0.0)
    assert calibration(flat(0, 4), flat(5, 7), true(2)) == (0.5, -4.0)
    assert calibration(flat(3, 1), flat(0, 1), true(2)) == pytest.approx((-0.5, 1.5))


@pytest.mark.checklist(13)
def test_values_that_do_not_vary_have_a_bias_and_no_slope():
    slope, bias = calibration(torch.full((7,), 0.1), torch.arange(7.0), true(7))
    assert math.isnan(slope)
    assert bias == pytest.approx(-2.9)
    assert all(map(math.isnan, calibration(flat(1, 2), flat(1, 2), torch.tensor([F, F]))))
    # Heads whose mean is 0 at the start, up to roundings.
    slope, bias = calibration(flat(2e-9, -1e-9, 0), flat(0, 0.1, 0.2), true(3))
    assert math.isnan(slope)
    assert bias == pytest.approx(-0.1)


@pytest.mark.checklist(13)
@quick
@given(st.lists(st.tuples(st.integers(-9, 9), st.floats(-5, 5), st.booleans()), min_size=1, max_size=20))
def test_only_the_masked_elements_count_and_the_slope_is_that_of_least_squares(triples):
    v, r = flat(*(float(x) for x, *_ in triples)), flat(*(x for _, x, _ in triples))
    mask = torch.tensor([m for *_, m in triples])
    found = calibration(v, r, mask)
    other = calibration(torch.where(mask, v, 77.0), torch.where(mask, r, -3.0), mask)
    assert found == pytest.approx(other, nan_ok=True)
    if len(v[mask].unique()) > 1:
        line = torch.linalg.lstsq(torch.stack([v[mask], torch.ones_like(v[mask])], 1), r[mask][:, None])
        assert found.slope == pytest.approx(float(line.solution[0, 0]), abs=1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        calibration(v, r[:-1], mask)


@pytest.mark.checklist(13)
def test_the_parts_of_a_row_are_equal_shares():
    assert part_of_row(rows(1, 4, 8), 4).tolist() == [0, 0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 3]
    assert part_of_row(rows(3, 2), 2).tolist() == [0, 0, 1, 0, 1]


@pytest.mark.checklist(13)
def test_means_by_position_of_what_counts():
    x, mask = flat(1, 2, 3, 4, 10, 20), torch.tensor([T, T, F, T, T, T])
    assert mean_by_position(x, mask, rows(4, 2), parts=2) == [(1 + 2 + 10) / 3, (4 + 20) / 2]
    quarters = mean_by_position(flat(1, 2, 3), true(3), rows(3))
    assert quarters[:3] == [1.0, 2.0, 3.0]
    assert math.isnan(quarters[3])
    for wrong in ((flat(1), true(2), rows(2)), (flat(1, 2), true(2), rows(3))):
        with pytest.raises(ValueError, match="shapes do not fit"):
            mean_by_position(*wrong)
