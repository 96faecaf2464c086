"""Section 1, item 10: targets → histograms → values, and the cross-entropy between them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from advantage_cases import flat, quick
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.value_histogram import (
    ValueBins,
    beyond_bins,
    first_logits,
    histogram_loss,
    histogram_mean,
    histogram_of,
)

TWO_HOT = ValueBins(-1.0, 3.0, 5, sigma=0.0)  # −1, 0, 1, 2, 3
WIDE = ValueBins(-10.0, 10.0, 41)  # 0.5 apart


def normal(x: float) -> float:
    """Φ(x) of the standard normal distribution."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.checklist(10)
def test_the_values_are_evenly_spaced_and_the_ends_are_among_them():
    assert TWO_HOT.values(flat(0)).tolist() == [-1, 0, 1, 2, 3]
    assert (TWO_HOT.spacing, WIDE.spacing) == (1.0, 0.5)
    assert TWO_HOT.values(torch.zeros(1)).dtype == torch.float32
    assert ValueBins(0.0, 1.0, 2).sigma == 0.75


@pytest.mark.checklist(10)
def test_two_hot_shares_the_probability_between_the_two_values_beside_the_target():
    found = histogram_of(flat(0.25, -1, 2, 3, 2.9), TWO_HOT)
    wanted = [[0, 0.75, 0.25, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0.1, 0.9]]
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12)
    half = histogram_of(flat(0.125), ValueBins(0.0, 1.0, 5, sigma=0.0))
    assert half.tolist() == [[0.5, 0.5, 0, 0, 0]]


@pytest.mark.checklist(10)
@quick
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=9), st.sampled_from([0.0, 0.75, 2.0]))
def test_a_histogram_is_one_and_its_mean_the_target_within_the_range(targets, sigma):
    bins = ValueBins(-10.0, 10.0, 41, sigma)
    y = flat(*targets)
    p = histogram_of(y, bins)
    assert p.shape == (len(targets), 41)
    assert bool((p >= 0).all())
    assert torch.allclose(p.sum(-1), torch.ones_like(y), atol=1e-12)
    mean = p @ bins.values(y)
    inside = (y.abs() <= 10) if sigma == 0 else (y.abs() <= 10 - 5 * sigma * bins.spacing)
    # Of a Gaussian that is put into bins the mean is off by less than 2e-5 spacings at σ = 0.75.
    assert torch.allclose(mean[inside], y[inside], atol=1e-12 if sigma == 0 else 1e-5)


@pytest.mark.checklist(10)
def test_hl_gauss_has_the_mass_of_the_gaussian_in_each_bin():
    bins = ValueBins(-1.0, 1.0, 3, sigma=0.5)  # −1, 0, 1; edges −1.5, −0.5, 0.5, 1.5; σ = 0.5
    edges = [normal((e - 0.2) / 0.5) for e in (-1.5, -0.5, 0.5, 1.5)]
    wanted = [(b - a) / (edges[3] - edges[0]) for a, b in pairwise(edges)]
    assert histogram_of(flat(0.2), bins)[0].tolist() == pytest.approx(wanted, abs=1e-12)
    # At an end, half of it lies beyond what is kept by no more than half a bin.
    edges = [normal((e - 1.0) / 0.5) for e in (-1.5, -0.5, 0.5, 1.5)]
    wanted = [(b - a) / (edges[3] - edges[0]) for a, b in pairwise(edges)]
    assert histogram_of(flat(1.0), bins)[0].tolist() == pytest.approx(wanted, abs=1e-12)
    # σ is in spacings: twice as far apart, twice as wide.
    twice = ValueBins(-2.0, 2.0, 3, sigma=0.5)
    assert torch.allclose(histogram_of(flat(0.4), twice), histogram_of(flat(0.2), bins), atol=1e-12)


@pytest.mark.checklist(10)
def test_a_target_beyond_the_range_counts_as_its_end_and_is_told():
    for bins in (TWO_HOT, ValueBins(-1.0, 3.0, 5)):
        assert torch.equal(histogram_of(flat(-7, 9), bins), histogram_of(flat(-1, 3), bins))
    told = beyond_bins(flat(-1.001, -1, 0, 3, 3.001), TWO_HOT)
    assert told.tolist() == [True, False, False, False, True]


@pytest.mark.checklist(10)
def test_the_value_is_the_mean_of_the_softmax():
    assert float(histogram_mean(torch.zeros(5), TWO_HOT)) == 1.0  # the middle
    logits = flat(0, math.log(3), -math.inf, -math.inf, -math.inf)
    assert float(histogram_mean(logits, TWO_HOT)) == pytest.approx(-0.25)
    assert histogram_mean(torch.zeros(2, 4, 5), TWO_HOT).shape == (2, 4)
    assert float(histogram_mean(flat(0, 0, 0, 0, 900), TWO_HOT)) == 3.0


@pytest.mark.checklist(11)
def test_first_logits_are_those_of_the_mean_histogram_with_a_hundredth_shared_by_all():
    found = first_logits(flat(0.25, -1, 2, 2), TWO_HOT)
    mean = torch.tensor([1.0, 0.75, 0.25, 2.0, 0.0], dtype=torch.float64) / 4
    assert torch.allclose(found.exp(), 0.99 * mean + 0.01 / 5, atol=1e-12)
    assert float(histogram_mean(found, TWO_HOT)) == pytest.approx(0.99 * 3.25 / 4 + 0.01 * 1.0)
    # The gradient of the cross-entropy, summed over the targets, is then nearly none.
    logits = first_logits(flat(-3, 2, 4.4), WIDE).expand(3, -1).clone().requires_grad_()
    histogram_loss(logits, flat(-3, 2, 4.4), WIDE).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.sum(0).abs().max()) < 3 * 0.01
    assert float(logits.grad.abs().max()) > 0.3


@pytest.mark.checklist(10)
@pytest.mark.parametrize("bins", [TWO_HOT, ValueBins(-1.0, 3.0, 5)])
def test_the_gradient_of_the_cross_entropy_is_softmax_minus_target(bins):
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, 0.7], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    logits.requires_grad_()
    targets = flat(0.25, 2.5)
    loss = histogram_loss(logits, targets, bins)
    p, q = histogram_of(targets, bins), logits.softmax(-1)
    assert torch.allclose(loss, -(p * q.log()).sum(-1), atol=1e-12)
    assert float(loss[1].detach()) == pytest.approx(math.log(5))
    loss.sum().backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad, (q - p).detach(), atol=1e-12)


@pytest.mark.checklist(10)
def test_descent_on_the_cross_entropy_reaches_the_target_and_its_entropy():
    targets, logits = flat(-3.3, 0, 7.25), torch.zeros(3, 41, dtype=torch.float64, requires_grad=True)
    p = histogram_of(targets, WIDE)
    for _ in range(1200):
        (gradient,) = torch.autograd.grad(histogram_loss(logits, targets, WIDE).sum(), logits)
        logits = (logits - 4 * gradient).detach().requires_grad_()
    assert torch.allclose(histogram_mean(logits, WIDE), targets, atol=0.03)
    entropy = -(p * p.clamp(min=1e-300).log()).sum(-1)
    assert torch.allclose(histogram_loss(logits, targets, WIDE), entropy, atol=0.02)


@pytest.mark.checklist(10)
def test_the_precision_is_that_of_the_input_and_shapes_are_checked():
    assert histogram_of(torch.zeros(2), WIDE).dtype == torch.float32
    assert histogram_mean(torch.zeros(2, 41), WIDE).dtype == torch.float32
    assert histogram_loss(torch.zeros(2, 41), torch.zeros(2), WIDE).dtype == torch.float32
    for shape in ((2, 40), (3, 41), (41,)):
        with pytest.raises(ValueError, match=r"are not 41 for each of \(2,\) targets"):
            histogram_loss(torch.zeros(shape), torch.zeros(2), WIDE)
