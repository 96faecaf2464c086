"""Section 2, item 23: conjugate gradient, the natural step, the line search."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import (
    f64,
)

from proxlm.rl.trust_region import conjugate_gradient, natural_step, trust_region_step


def spd(seed, size):
    """A symmetric positive definite matrix with eigenvalues in [0.5, 5], and a vector; float64."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = 0.5 + 4.5 * torch.rand(size, generator=generator, dtype=torch.float64)
    return q @ torch.diag(values) @ q.T, torch.randn(size, generator=generator, dtype=torch.float64)


seeds, sizes = st.integers(0, 10_000), st.integers(1, 12)


@pytest.mark.checklist(23)
@given(seeds, sizes)
def test_conjugate_gradient_solves(seed, size):
    matrix, target = spd(seed, size)
    x = conjugate_gradient(lambda v: matrix @ v, target, iterations=2 * size, tolerance=1e-24)
    assert float((x - torch.linalg.solve(matrix, target)).norm()) <= 1e-6 * float(target.norm())
    by_default = conjugate_gradient(lambda v: matrix @ v, target, iterations=2 * size)
    assert float((matrix @ by_default - target).norm()) <= 1.01e-5 * float(target.norm())


@pytest.mark.checklist(23)
def test_conjugate_gradient_stops():
    calls = []

    def product(v):
        calls.append(v)
        return v * f64([1.0, 2.0, 3.0])

    assert conjugate_gradient(product, torch.zeros(3).double(), 10).tolist() == [0, 0, 0]
    assert not calls
    found = conjugate_gradient(product, f64([1.0, 2.0, 3.0]), 50)
    assert found.tolist() == pytest.approx([1, 1, 1])
    assert len(calls) == 3  # as many as there are eigenvalues
    # One iteration: the best step along the target, bᵀb / bᵀMb · b = 14 / 36 · b.
    once = conjugate_gradient(product, f64([1.0, 2.0, 3.0]), 1)
    assert once.tolist() == pytest.approx([14 / 36, 28 / 36, 42 / 36])
    assert conjugate_gradient(lambda v: -v, f64([1.0]), 5).tolist() == [0.0]  # not positive: nothing found
    assert conjugate_gradient(lambda v: 0 * v, f64([1.0]), 5).tolist() == [0.0]


@pytest.mark.checklist(23)
@given(seeds, sizes, st.floats(1e-4, 1.0))
def test_on_a_quadratic_the_natural_step_is_newtons(seed, size, delta):
    matrix, gradient = spd(seed, size)
    newton = torch.linalg.solve(matrix, gradient)
    step = natural_step(gradient, lambda v: matrix @ v, delta, 2 * size)
    assert 0.5 * float(step @ matrix @ step) == pytest.approx(delta, rel=1e-9)
    assert float(torch.nn.functional.cosine_similarity(step, newton, dim=0)) == pytest.approx(1, abs=1e-8)
    # With the KL of Newton's own step as δ it is Newton's step.
    own = 0.5 * float(newton @ matrix @ newton)
    whole = natural_step(gradient, lambda v: matrix @ v, own, 2 * size)
    assert float((whole - newton).norm()) <= 1e-4 * float(newton.norm())


@pytest.mark.checklist(23)
def test_without_a_gradient_or_a_curvature_there_is_no_step():
    for gradient, fisher in (
        (torch.zeros(2), lambda v: v),
        (torch.ones(2), lambda v: -v),
        (torch.ones(2), lambda v: 0 * v),
        (torch.ones(2), lambda v: v * math.nan),
    ):
        assert natural_step(gradient, fisher, 0.1, 5).tolist() == [0.0, 0.0]


def searched(measured_at, halvings=10):
    """A line search on F = 1, where the whole step is 1 = √(2 · 0.5): what was found, and the steps tried."""
    tried = []

    def measure(step):
        tried.append(float(step))
        return measured_at(float(step))

    return trust_region_step(f64([4.0]), lambda v: v, measure, 0.5, halvings=halvings), tried


@pytest.mark.checklist(23)
def test_line_search_halves_until_the_kl_and_the_rise_are_good():
    found, tried = searched(lambda s: (s, 0.5 * s * s))
    assert (found.tries, found.accepted, tried) == (0, True, [1.0])  # a KL of exactly δ is good
    assert (found.kl, found.improvement, float(found.step)) == (0.5, 1.0, 1.0)
    found, tried = searched(lambda s: (s, 5 * s * s))  # 5, 1.25, 0.3125
    assert (found.tries, found.accepted, tried) == (2, True, [1.0, 0.5, 0.25])
    assert (found.kl, found.improvement, float(found.step)) == (0.3125, 0.25, 0.25)
    found, tried = searched(lambda s: (s - 2 * s * s, 0.0))  # −1, 0, 0.125: a rise of 0 is none
    assert (found.tries, found.improvement, tried) == (2, 0.125, [1.0, 0.5, 0.25])
    found, _ = searched(lambda s: (1.0, math.nan if s > 0.25 else 0.0))
    assert found.tries == 2
    found, _ = searched(lambda s: (1.0, -math.inf if s == 1 else 0.0))
    assert found.tries == 1


@pytest.mark.checklist(23)
@pytest.mark.parametrize("bad", [(-1.0, 0.0), (0.0, 0.0), (1.0, 9.0), (1.0, math.nan), (math.nan, 0.0)])
@pytest.mark.parametrize("halvings", [0, 1, 4])
def test_where_no_step_is_good_there_is_none(bad, halvings):
    found, tried = searched(lambda s: bad, halvings)
    assert tried == [0.5**k for k in range(halvings + 1)]
    assert (found.tries, found.accepted, found.kl, found.improvement) == (halvings, False, 0.0, 0.0)
    assert found.step.tolist() == [0.0]


@pytest.mark.checklist(23)
def test_the_default_is_10_halvings():
    calls = []

    def measure(step):
        calls.append(step)
        return -1.0, 0.0

    assert trust_region_step(f64([1.0]), lambda v: v, measure, 0.5).tries == 10
    assert len(calls) == 11


@pytest.mark.checklist(23)
@given(seeds, st.integers(2, 6), st.floats(1e-3, 0.3))
def test_trust_region_step_of_a_softmax_bandit(seed, size, delta):
    """F = diag p − p pᵀ, the Hessian of the KL; the true KL is at most δ, and the expected reward rises."""
    generator = torch.Generator().manual_seed(seed)
    logits, reward = torch.randn(2, size, generator=generator, dtype=torch.float64)
    p = torch.softmax(logits, -1)
    matrix = torch.diag(p) - torch.outer(p, p)

    def kl(step):
        return (p * (torch.log_softmax(logits, -1) - torch.log_softmax(logits + step, -1))).sum()

    hessian = torch.autograd.functional.hessian(kl, torch.zeros(size, dtype=torch.float64))
    assert torch.allclose(hessian, matrix, atol=1e-12)

    def measure(step):
        return float((torch.softmax(logits + step, -1) - p) @ reward), float(kl(step))

    found = trust_region_step(matrix @ reward, lambda v: matrix @ v + 1e-9 * v, measure, delta, 20, 20)
    assert found.accepted
    assert 0 < found.kl <= delta
    assert found.improvement > 0
    assert measure(found.step) == (found.improvement, found.kl)
