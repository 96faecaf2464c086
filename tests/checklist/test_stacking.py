"""Item 51: weights of an ensemble's members."""

from __future__ import annotations

import math

import pytest
import torch

from proxlm.train.supervised.stacking import stacking_weights


def flat(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stacking_gradient(leads: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return -(leads.T @ torch.sigmoid(-leads @ weights)) + weights * leads.square().mean(0)


@pytest.mark.checklist(51)
def test_stacking_is_at_the_optimum_of_a_convex_problem_with_weights_that_are_not_negative():
    """Kuhn and Tucker: the gradient is 0 where a weight is positive, and not negative where it is 0."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(features @ flat(1.0, 0.5, -0.5))
    signs = (torch.rand(400, generator=generator, dtype=torch.float64) < chance).double() * 2 - 1
    leads = features * signs[:, None] * flat(1.0, 10.0, 1.0)
    weights = stacking_weights(leads)
    gradient = stacking_gradient(leads, weights)
    assert weights[2] == 0.0
    assert gradient[2] > 1.0
    assert gradient[:2].abs().max() < 1e-6
    assert float(weights[0]) == pytest.approx(1.0, abs=0.25)
    assert float(weights[1]) == pytest.approx(0.05, abs=0.02)  # a member in larger units


@pytest.mark.checklist(51)
def test_stacking_converges_for_members_that_are_nearly_the_same():
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = drawn(3000, 1) + 0.01 * drawn(3000, 5)
    chance = torch.sigmoid(features @ flat(2.0, -1.0, 0.5, 0.0, 0.0))
    signs = (torch.rand(3000, generator=generator, dtype=torch.float64) < chance).double() * 2 - 1
    leads = features * signs[:, None]
    weights = stacking_weights(leads)
    assert float(weights.min()) > 0
    assert stacking_gradient(leads, weights).abs().max() < 1e-8


@pytest.mark.checklist(51)
def test_stacking_of_one_member_by_hand_and_of_members_without_worth():
    """One lead of 1: w solves σ(−w) = w."""
    weight = float(stacking_weights(torch.ones(1, 1)))
    assert 1 / (1 + math.exp(weight)) == pytest.approx(weight, abs=1e-9)
    same = stacking_weights(torch.ones(8, 2))
    assert float(same[0]) == pytest.approx(float(same[1]), abs=1e-9)
    assert stacking_weights(-torch.ones(8, 2)).tolist() == [0.0, 0.0]
    assert stacking_weights(torch.zeros(8, 2)).tolist() == pytest.approx([0.0, 0.0])
