"""Label smoothing is torch's, without logits of all tokens; the focal loss by its formula and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from proxlm.rl.preference_losses import class_loss
from proxlm.rl.token_losses import focal_loss, smoothed_losses


def material(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 5, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(23, 5, generator=generator, dtype=dtype, requires_grad=True)
    tokens = torch.randint(23, (11,), generator=generator)
    weights = torch.rand(11, generator=generator, dtype=dtype)
    return hidden, weight, tokens, weights


@pytest.mark.parametrize("chunk", [1, 3, 11, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_is_torchs_in_chunks_with_its_gradients(chunk, smoothing):
    hidden, weight, tokens, weights = material(torch.float32)
    largest = []

    def head(states):
        largest.append(len(states))
        return states @ weight.T

    losses = smoothed_losses(hidden, head, tokens, smoothing, chunk)
    wanted = cross_entropy(hidden @ weight.T, tokens, reduction="none", label_smoothing=smoothing)
    assert losses.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    found = torch.autograd.grad((weights * losses).sum(), (hidden, weight))
    plain = torch.autograd.grad((weights * wanted).sum(), (hidden, weight))
    for one, other in zip(found, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert max(largest) == min(chunk, 11)


def test_label_smoothing_by_hand():
    """p = (1/2, 1/4, 1/4), the right token first: (1 − ε) log 2 + ε (log 2 + 2 log 4) / 3 = log 2 (1 + 2 ε / 3)."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    losses = smoothed_losses(logits, lambda states: states, torch.tensor([0]), 0.3, 4)
    assert losses.item() == pytest.approx(math.log(2) * 1.2)
    assert class_loss(logits, torch.tensor([0]), 0.3).item() == pytest.approx(math.log(2) * 1.2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_loss_has_the_gradients_of_its_formula(gamma):
    hidden, weight, tokens, weights = material()
    logprobs = log_softmax(hidden @ weight.T, -1).gather(-1, tokens[:, None])[:, 0]
    p = torch.softmax(hidden @ weight.T, -1)[torch.arange(11), tokens]
    plain = -((1 - p) ** gamma) * p.log()
    losses = focal_loss(logprobs, gamma)
    assert losses.tolist() == pytest.approx(plain.tolist(), rel=1e-9)
    if gamma == 0:
        assert losses.tolist() == pytest.approx((-logprobs).tolist(), rel=1e-15)
    found = torch.autograd.grad((weights * losses).sum(), (hidden, weight))
    wanted = torch.autograd.grad((weights * plain).sum(), (hidden, weight))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_focal_loss_by_hand():
    """p = 1/2, γ = 2: log 2 / 4. p = 0.9: the loss is a hundredth of cross-entropy, as in Lin et al. 2017."""
    logprobs = torch.tensor([0.5, 0.9]).double().log()
    assert focal_loss(logprobs, 2.0).tolist() == pytest.approx([math.log(2) / 4, -math.log(0.9) / 100])


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_what_is_certain_has_a_finite_gradient(gamma):
    logprobs = torch.tensor([0.0, -1e-9, -1e4], requires_grad=True)
    focal_loss(logprobs, gamma).sum().backward()
    assert logprobs.grad.isfinite().all()
    assert float(logprobs.grad[2]) == -1.0
