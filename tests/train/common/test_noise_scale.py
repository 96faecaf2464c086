"""The gradient-noise scale on a quadratic whose noise scale is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proxlm.train.common.memory import TokenBudget
from proxlm.train.common.noise_scale import noise_estimates, noise_scale
from proxlm.train.supervised.batches import TokenBatches
from proxlm.train.supervised.gradient_noise import batch_estimates

# Loss of an example x at w: |w − x|² / 2, x normal around μ with deviations σ: the gradient is w − x, so
# G = w − μ and tr Σ = Σ σ².
SIGMA = torch.tensor([1.0, 2.0, 0.5, 3.0])


class Quadratic:
    """Rows of equally many tokens; a gradient is the mean over rows of w − x."""

    def __init__(self, rows, distance, tokens=1):
        generator = torch.Generator().manual_seed(4)
        self.x = SIGMA * torch.randn(rows, 4, generator=generator)
        self.w = nn.Parameter(torch.full((4,), distance))
        self.lengths = torch.full((rows,), tokens)

    def trainable(self):
        return [("w", self.w)]

    def gradient(self, rows, micro_batch_tokens):
        loss = (self.w - self.x[rows]).square().sum(-1).mean() / 2
        loss.backward()
        return float(loss.detach()), len(rows)


def test_the_estimates_are_unbiased():
    """Over many batches their means are |G|² and tr Σ, within four standard errors."""
    generator, small, parts = torch.Generator().manual_seed(0), 2, 4
    g = torch.tensor([0.3, -0.2, 0.5, 0.1])
    found = []
    for _ in range(4000):
        noise = SIGMA * torch.randn(parts, small, 4, generator=generator)
        gradients = g + noise.mean(1)
        norm2 = float(gradients.square().sum(-1).mean()), float(gradients.mean(0).square().sum())
        found.append(noise_estimates(*norm2, small, small * parts))
    for i, wanted in enumerate((float(g.square().sum()), float(SIGMA.square().sum()))):
        values = torch.tensor([pair[i] for pair in found])
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - wanted) < 4 * error
        assert error < 0.1 * wanted


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("distance", [0.5, 3.0])
def test_a_known_noise_scale_is_found(distance, tokens):
    """B = tr Σ / |w − μ|², in examples; in tokens so many times as much as an example has tokens."""
    objective = Quadratic(20_000, distance, tokens)
    batches = TokenBatches(objective.lengths, 8 * tokens, 0)
    estimates = batch_estimates(objective, batches, 40, 8, TokenBudget(4096))
    found = noise_scale(estimates)
    wanted = tokens * float(SIGMA.square().sum()) / (4 * distance**2)
    assert found.low < wanted < found.high
    assert found.scale == pytest.approx(wanted, rel=0.3)
    assert objective.w.tolist() == [distance] * 4
    assert objective.w.grad is None


def test_a_gradient_that_is_lost_in_noise_has_no_upper_end():
    objective = Quadratic(4000, 0.0)
    found = noise_scale(
        batch_estimates(objective, TokenBatches(objective.lengths, 4, 0), 8, 4, TokenBudget(64))
    )
    assert math.isinf(found.high)
    assert found.low > 20


def test_by_hand():
    """|G_1|² = 5, |G_4|² = 2: |G|² = (8 − 5) / 3 = 1, tr Σ = 3 / (3/4) = 4."""
    assert noise_estimates(5.0, 2.0, 1, 4) == pytest.approx((1.0, 4.0))
    same = noise_scale([(1.0, 4.0), (1.0, 4.0)])
    assert (same.scale, same.low, same.high) == (4.0, 4.0, 4.0)
