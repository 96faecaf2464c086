"""Section 1, item 44: values of several heads → one value, their spread, how they begin, what each learns from."""

from __future__ import annotations

import math

import pytest
import torch
from advantage_cases import flat, quick
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.value_ensemble import (
    ONE_HEAD,
    Ensemble,
    bootstrap_factors,
    combined_value,
    differences_of_heads,
    ensemble_loss,
    spread_of_heads,
)

WAYS = ["mean", "min", "lower_bound"]


@pytest.mark.checklist(44)
def test_mean_minimum_and_lower_bound_of_numbers_worked_out_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0], [-1.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    # Means 3, 0, 0; squared distances 4 + 1 + 9 = 14 and 1 + 1 + 4 = 6, over three heads.
    deviation = [math.sqrt(14 / 3), math.sqrt(2), 0.0]
    assert combined_value(values, "mean").tolist() == [3, 0, 0]
    assert combined_value(values, "min").tolist() == [1, -1, 0]
    assert spread_of_heads(values).tolist() == pytest.approx(deviation)
    assert combined_value(values, "lower_bound").tolist() == pytest.approx(
        [3 - deviation[0], -deviation[1], 0]
    )
    assert combined_value(values, "lower_bound", 2.0).tolist() == pytest.approx(
        [3 - 2 * deviation[0], -2 * deviation[1], 0]
    )
    assert torch.equal(combined_value(values, "lower_bound", 0.0), combined_value(values, "mean"))


@pytest.mark.checklist(44)
def test_two_heads_less_one_deviation_are_their_minimum():
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    low = combined_value(values, "lower_bound", 1.0)
    assert torch.allclose(low, combined_value(values, "min"), atol=1e-12)


@pytest.mark.checklist(44)
@quick
@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=7))
def test_the_minimum_lies_between_its_bounds(values):
    """Samuelson 1968 below the mean; above, one head is at least deviation / √(K − 1) below it."""
    v = flat(*values)
    low, mean, deviation = (
        float(x) for x in (combined_value(v, "min"), combined_value(v, "mean"), spread_of_heads(v))
    )
    root = math.sqrt(len(values) - 1)
    assert low <= mean + 1e-9
    assert mean - root * deviation - 1e-6 <= low <= mean - deviation / root + 1e-6
    assert float(combined_value(v, "lower_bound", root)) <= low + 1e-6


@pytest.mark.checklist(44)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("heads", [1, 2, 3, 5, 7, 10])
def test_equal_heads_are_one_head_exactly(heads, how):
    one = torch.randn(4, 25, generator=torch.Generator().manual_seed(heads))
    found = combined_value(one[..., None].expand(4, 25, heads), how, 3.0)
    assert torch.equal(found, one)
    assert found.dtype == torch.float32
    assert float(spread_of_heads(one[..., None].expand(4, 25, heads)).max()) < 1e-15


@pytest.mark.checklist(44)
def test_the_order_of_the_heads_does_not_matter():
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    for how in WAYS:
        assert torch.allclose(combined_value(values, how), combined_value(values.flip(-1), how), atol=1e-7)


def test_a_way_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r'^combine must be "mean", "min" or "lower_bound", got "median"$'):
        combined_value(torch.zeros(2, 2), "median")
    assert Ensemble(heads=1, combine="mean", pessimism=1.0, spread=0.1) == ONE_HEAD


@pytest.mark.checklist(44)
def test_heads_begin_apart_and_their_mean_where_one_head_would():
    noise = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]], dtype=torch.float64)
    wanted = torch.tensor([[-1.0, -2.0], [1.0, -2.0], [0.0, 4.0]], dtype=torch.float64) * math.sqrt(1.5)
    found = differences_of_heads(noise)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(differences_of_heads(noise[:2]), flat(-1, 0, 1, 0).view(2, 2) * math.sqrt(2))
    assert not differences_of_heads(noise[:1]).any()
    # Over all that two heads of variance 4 may be (±2 each): the expected variance over the heads is 4.
    every = flat(2, 2, -2, 2, 2, -2, -2, -2).view(4, 2)
    variance = [float(spread_of_heads(differences_of_heads(n)).square()) for n in every]
    assert sum(variance) / 4 == pytest.approx(4.0)


@pytest.mark.checklist(44)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_a_response_counts_1_on_average_and_0_or_1_over_the_share_once(share):
    uniforms = torch.arange(20, dtype=torch.float64).view(10, 2) / 20  # each twentieth once
    factors = bootstrap_factors(uniforms, share)
    assert factors.dtype == torch.float32
    assert float(factors.mean()) == pytest.approx(1.0)
    assert int((factors > 0).sum()) == round(20 * share)
    assert factors.flatten()[0] == pytest.approx(1 / share)
    assert factors[uniforms >= share].tolist() == [0.0] * (20 - round(20 * share))


@pytest.mark.checklist(44)
def test_the_loss_is_the_mean_over_heads_of_each_ones_weighted_sum():
    losses, weights = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]]), flat(0.5, 0.25, 0.0).float()
    # Head 1: 0.5 + 0.75 = 1.25; head 2: 1 + 1.25 = 2.25.
    assert float(ensemble_loss(losses, weights)) == pytest.approx(1.75)
    factors = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    # Head 1: 2 · 0.5; head 2: 2 · 1.25.
    assert float(ensemble_loss(losses, weights, factors)) == pytest.approx(1.75)
    assert float(ensemble_loss(losses, weights, factors.flip(-1))) == pytest.approx((1.5 + 2.0) / 2)
    one = ensemble_loss(losses[:, :1], weights)
    assert torch.equal(one, (weights * losses[:, 0]).sum())


@pytest.mark.checklist(44)
def test_over_all_shares_the_expected_loss_is_that_without_shares():
    """Two responses, two heads, p = ½: 16 draws of who learns from what, all as likely."""
    losses, weights = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([0.3, 0.7])
    draws = [
        torch.tensor([[a, b], [c, d]]) for a in (0, 0.5) for b in (0, 0.5) for c in (0, 0.5) for d in (0, 0.5)
    ]
    found = [float(ensemble_loss(losses, weights, bootstrap_factors(u, 0.5))) for u in draws]
    assert sum(found) / 16 == pytest.approx(float(ensemble_loss(losses, weights)))
    assert len(set(found)) > 8


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((3, 2), (2,), None), "(3, 2), (2,)"),
        (((3, 2), (3,), (3, 1)), "(3, 2), (3,), (3, 1)"),
        (((3, 2), (3, 2), None), "(3, 2), (3, 2)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, named):
    losses, weights, factors = (None if shape is None else torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError) as error:
        ensemble_loss(losses, weights, factors)
    assert str(error.value) == f"losses, weights and factors do not fit: {named}"
