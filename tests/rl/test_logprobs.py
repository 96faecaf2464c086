"""Log-probs and entropy by closed form; chunks change memory, not numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proxlm.rl.logprobs import (
    chunked_logprobs,
    logprobs_and_entropy,
    predicting_states,
)
from proxlm.types import Sequences


@pytest.mark.checklist(22)
def test_uniform_logits():
    logprobs, entropy = logprobs_and_entropy(torch.zeros(2, 7), torch.tensor([0, 6]))
    assert logprobs.tolist() == pytest.approx([-math.log(7)] * 2)
    assert entropy is not None
    assert entropy.tolist() == pytest.approx([math.log(7)] * 2)


@pytest.mark.checklist(33)
def test_two_tokens_by_hand_at_two_temperatures():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    logprobs, entropy = logprobs_and_entropy(logits, torch.tensor([0]))
    assert float(logprobs) == pytest.approx(math.log(0.75))
    assert entropy is not None
    assert float(entropy) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    # Temperature 2 takes the square root of the odds: √3 : 1.
    hot, _ = logprobs_and_entropy(logits, torch.tensor([0]), temperature=2.0)
    assert float(hot) == pytest.approx(math.log(math.sqrt(3) / (1 + math.sqrt(3))))


def test_impossible_tokens_leave_entropy_finite():
    _, entropy = logprobs_and_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]))
    assert entropy is not None
    assert float(entropy) == pytest.approx(math.log(2))


def test_gradient_is_onehot_minus_probability():
    logits = torch.tensor([[0.3, -0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    logprobs_and_entropy(logits, torch.tensor([1]), entropy=False)[0].sum().backward()
    p = torch.softmax(logits.detach(), -1)
    assert torch.allclose(logits.grad, torch.tensor([[0.0, 1.0, 0.0]]).double() - p)


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_chunks_give_the_same_values_and_gradients(chunk):
    torch.manual_seed(0)
    head = nn.Linear(8, 11, dtype=torch.float64)
    hidden = torch.randn(10, 8, dtype=torch.float64)
    tokens = torch.randint(11, (10,))
    weights = torch.randn(10, dtype=torch.float64)

    def run(size):
        h = hidden.clone().requires_grad_()
        head.zero_grad()
        logprobs, entropy = chunked_logprobs(h, head, tokens, 0.7, entropy=True, chunk=size)
        assert entropy is not None
        (weights * (logprobs + 0.1 * entropy)).sum().backward()
        assert head.weight.grad is not None
        return logprobs.detach(), entropy.detach(), h.grad, head.weight.grad.clone()

    for got, wanted in zip(run(chunk), run(1000), strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)


def test_no_logits_outlive_their_chunk():
    """With chunks of 4 states, no tensor saved for backward has more than 4 · V elements of logits."""
    head, hidden, tokens = nn.Linear(8, 1000), torch.randn(64, 8, requires_grad=True), torch.zeros(64).long()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        chunked_logprobs(hidden, head, tokens, chunk=4)[0].sum()
    assert max(saved, default=0) <= 4 * 1000
    assert sum(saved) < 64 * 1000


@pytest.mark.checklist(33)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradients_are_those_of_the_formulas(temperature):
    """Against finite differences, and against autograd through log_softmax where a token is impossible."""
    torch.manual_seed(1)
    logits, tokens = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(
        lambda z: logprobs_and_entropy(z, tokens, temperature, entropy=True), (logits,)
    )
    assert torch.autograd.gradcheck(
        lambda z: logprobs_and_entropy(z, tokens, temperature, entropy=False)[0], (logits,)
    )
    impossible = torch.zeros(4, 6).double()
    impossible[:, 3] = -torch.inf
    ours, theirs = (logits.detach().clone().requires_grad_() for _ in range(2))
    logprobs, entropy = logprobs_and_entropy(ours + impossible, tokens, temperature)
    (logprobs + 0.3 * entropy).sum().backward()
    logs = torch.log_softmax((theirs + impossible) / temperature, -1)
    possible = logs[:, [0, 1, 2, 4, 5]]
    wanted = logs.gather(1, tokens[:, None])[:, 0] - 0.3 * (possible.exp() * possible).sum(-1)
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_shift():
    # "0 1 → 2 3" and "4 → 5": tokens at 2, 3 and 5 are predicted by the states at 1, 2 and 4.
    sequences = Sequences.from_lists([[0, 1], [4]], [[2, 3], [5]])
    assert sequences.response_index.tolist() == [2, 3, 5]
    assert predicting_states(sequences.response_index).tolist() == [1, 2, 4]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        logprobs_and_entropy(torch.zeros(2, 3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="do not fit"):
        chunked_logprobs(torch.zeros(2, 3), lambda h: h, torch.zeros(3).long())
