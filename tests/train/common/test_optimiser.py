"""AdamW's first step by hand, clipping, skipped steps, and its state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proxlm.config import OptimiserSettings
from proxlm.train.common.optimiser import Optimiser


def make(values, **settings):
    parameter = nn.Parameter(torch.tensor(values))
    return parameter, Optimiser([("w", parameter)], OptimiserSettings(**settings))


@pytest.mark.checklist(36)
def test_first_step_moves_by_the_learning_rate_against_the_sign():
    p, optimiser = make([1.0, 2.0], lr=0.1, eps=1e-12, max_grad_norm=0)
    p.grad = torch.tensor([3.0, -4.0])
    assert optimiser.step(0, 10) == (5.0, 0.1)
    assert p.tolist() == pytest.approx([0.9, 2.1])
    assert p.grad.tolist() == [0, 0]
    optimiser.release()
    assert p.grad is None
    optimiser.hold()
    assert p.grad.tolist() == [0, 0]


@pytest.mark.checklist(36)
def test_gradient_is_clipped_and_the_norm_before_is_returned():
    # With a large ε the step is lr · g / ε: proportional to the gradient.
    p, optimiser = make([0.0, 0.0], lr=1.0, eps=1e6, max_grad_norm=1.0)
    p.grad = torch.tensor([3.0, 4.0])
    assert optimiser.step(0, 10)[0] == 5.0
    assert (p * 1e6).tolist() == pytest.approx([-0.6, -0.8], rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    p, optimiser = make([1.0, 2.0], lr=0.1)
    p.grad = torch.tensor([1.0, bad])
    assert not math.isfinite(optimiser.step(0, 10)[0])
    assert p.tolist() == [1, 2]


def test_weight_decay_falls_on_matrices_only():
    matrix, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimiser = Optimiser([("m", matrix), ("b", bias)], OptimiserSettings(lr=0.1, weight_decay=0.5))
    matrix.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step(0, 10)
    assert matrix.flatten().tolist() == pytest.approx([0.95] * 4)
    assert bias.tolist() == [1, 1]


def test_state_goes_on_exactly():
    def run(steps, optimiser, p, start=0):
        for step in range(start, start + steps):
            p.grad = torch.sin(torch.arange(3.0) + step)
            optimiser.step(step, 10)

    p, whole = make([1.0, 2.0, 3.0], lr=0.1, schedule="linear")
    run(6, whole, p)
    q, first = make([1.0, 2.0, 3.0], lr=0.1, schedule="linear")
    run(3, first, q)
    r, second = make(q.tolist(), lr=0.1, schedule="linear")
    second.load_state_tensors(first.state_tensors())
    run(3, second, r, start=3)
    assert torch.equal(p, r)
