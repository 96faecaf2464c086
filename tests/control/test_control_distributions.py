"""Item 41: distributions over actions against closed forms, and actions within bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toys import Signs, Walk

from proxlm.control.distributions import Categorical, DiagonalGaussian, noise_for
from proxlm.control.spaces import spaces_of

pytestmark = pytest.mark.checklist(41)


def test_gaussian_by_hand():
    standard = DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1))
    assert standard.logprob(torch.zeros(1, 1)).item() == pytest.approx(-0.5 * math.log(2 * math.pi), abs=1e-6)
    assert standard.entropy().item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=1e-6)
    # σ = 1/2 and 2, one standard deviation off in the first number, two in the second.
    two = DiagonalGaussian(torch.tensor([[1.0, -1.0]]), torch.tensor([math.log(0.5), math.log(2.0)]))
    by_hand = -0.5 * (1 + 4) - math.log(0.5) - math.log(2.0) - math.log(2 * math.pi)
    assert two.logprob(torch.tensor([[1.5, 3.0]])).item() == pytest.approx(by_hand, abs=1e-6)
    assert two.entropy().item() == pytest.approx(math.log(2 * math.pi * math.e), abs=1e-6)


def test_gaussian_as_in_torch():
    generator = torch.Generator().manual_seed(0)
    mean, log_std, action = (torch.randn(shape, generator=generator) for shape in ((7, 3), (3,), (7, 3)))
    ours, theirs = DiagonalGaussian(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(ours.logprob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert ours.mode() is mean


def test_categorical_by_hand():
    choice = Categorical(torch.tensor([[0.25, 0.25, 0.5]]).log())
    assert choice.logprob(torch.tensor([2])).item() == pytest.approx(math.log(0.5), abs=1e-6)
    assert choice.entropy().item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert choice.mode().tolist() == [2]


def test_samples_have_the_distribution():
    shares, count = torch.tensor([0.1, 0.2, 0.7]), 200_000
    picked = Categorical(shares.log().expand(count, 3)).sample(noise_for(False, (count, 3), seed=5))
    error = 4 * (0.25 / count) ** 0.5
    assert (torch.bincount(picked) / count).tolist() == pytest.approx(shares.tolist(), abs=error)
    numbers = DiagonalGaussian(torch.full((count, 1), 3.0), torch.tensor([math.log(2.0)])).sample(
        noise_for(True, (count, 1), seed=5)
    )
    assert numbers.mean().item() == pytest.approx(3.0, abs=4 * 2 / count**0.5)
    assert numbers.std().item() == pytest.approx(2.0, abs=0.02)


def test_noise_is_of_the_seed_alone():
    torch.manual_seed(1)
    one = noise_for(False, (4, 2), seed=9)
    torch.manual_seed(2)
    assert torch.equal(one, noise_for(False, (4, 2), seed=9))
    assert not torch.equal(one, noise_for(False, (4, 2), seed=10))


def test_actions_are_clipped_for_the_environment_only():
    spaces = spaces_of(Signs(continuous=True), "toy")
    drawn = np.array([[3.0], [-0.25], [-9.0]], np.float32)
    assert [a.tolist() for a in spaces.to_environment(drawn)] == [[0.5], [-0.25], [-0.5]]
    assert drawn.tolist() == [[3.0], [-0.25], [-9.0]]


def test_discrete_actions_that_do_not_begin_at_0():
    spaces = spaces_of(Walk(continuous=False), "toy")
    assert spaces.to_environment(np.array([0, 1, 2])) == [-1, 0, 1]
    assert spaces.from_array(spaces.to_array([-1, 0, 1])) == [-1, 0, 1]
