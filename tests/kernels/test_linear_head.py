"""The head in place against the formulas that take any head: log-probs, entropies, gradients, at any span."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proxlm.kernels.head_gradient import backward_through_head
from proxlm.kernels.linear_head import backward_through_linear_head, linear_head_logprobs
from proxlm.rl.logprobs import chunked_logprobs, logprobs_and_entropy
from proxlm.rl.sampling_mask import SamplingMask

pytestmark = pytest.mark.checklist(32)


def head_and_states() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(11, (10,))


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_logprobs_entropies_and_gradients(chunk: int, entropy: bool) -> None:
    hidden, weight, tokens = head_and_states()
    head = torch.nn.Linear(8, 11, bias=False, dtype=torch.float64)
    head.weight.data.copy_(weight)
    ours = linear_head_logprobs(hidden, weight, tokens, 0.7, entropy, chunk)
    theirs = chunked_logprobs(hidden, head, tokens, 0.7, entropy, 1000)
    mix = torch.randn(2, 10, dtype=torch.float64)
    gradients = []
    for logprobs, entropies in (ours, theirs):
        assert (entropies is None) is not entropy
        loss = (mix[0] * logprobs).sum() + ((mix[1] * entropies).sum() if entropies is not None else 0)
        hidden.grad = weight.grad = None
        loss.backward()
        gradients.append((hidden.grad, weight.grad if head.weight.grad is None else head.weight.grad))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_loss_goes_backward_span_by_span(chunk: int, learns: bool, entropy: bool) -> None:
    """A loss that is not linear in the log-probs; the head's gradient is added to what is there."""
    hidden, weight, tokens = head_and_states()
    head = torch.nn.Linear(8, 11, bias=False, dtype=torch.float64)
    head.weight.data.copy_(weight)
    weight.requires_grad_(learns)
    factors = torch.randn(10, dtype=torch.float64)

    def loss(span: slice, logprobs: Tensor, entropies: Tensor | None) -> Tensor:
        more = 0.1 * entropies.square() if entropies is not None else 0.0
        return (factors[span] * (logprobs.exp() + more)).sum()

    states = hidden.detach()
    expected = backward_through_head(states, head, tokens, 0.7, entropy, 1000, loss)
    if learns:
        weight.grad = torch.ones_like(weight)
    found = backward_through_linear_head(states, weight, tokens, 0.7, entropy, chunk, loss)
    torch.testing.assert_close(found, expected)
    if learns:
        torch.testing.assert_close(weight.grad - 1, head.weight.grad)
    else:
        assert weight.grad is None


@pytest.mark.checklist(34)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_kept_sets_give_what_any_head_gives_with_them(chunk: int, entropy: bool) -> None:
    hidden, weight, tokens = head_and_states()
    head = torch.nn.Linear(8, 11, bias=False, dtype=torch.float64)
    head.weight.data.copy_(weight)
    kept = torch.rand(10, 11, generator=torch.Generator().manual_seed(1)) < 0.4
    kept[torch.arange(10), tokens] = True
    kept[3] = True
    mask, mix = SamplingMask.of(kept), torch.randn(2, 10, dtype=torch.float64)

    def loss(span: slice, logprobs: Tensor, entropies: Tensor | None) -> Tensor:
        more = mix[1][span] * entropies.square() if entropies is not None else 0.0
        return (mix[0][span] * logprobs.exp() + more).sum()

    theirs = chunked_logprobs(hidden, head, tokens, 0.7, entropy, 1000, mask)
    expected = torch.autograd.grad(loss(slice(0, 10), *theirs), [hidden, head.weight])
    ours = linear_head_logprobs(hidden, weight, tokens, 0.7, entropy, chunk, mask)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    found = torch.autograd.grad(loss(slice(0, 10), *ours), [hidden, weight])
    torch.testing.assert_close(found, expected)
    states = hidden.detach()
    span_by_span = backward_through_linear_head(states, weight, tokens, 0.7, entropy, chunk, loss, mask)
    torch.testing.assert_close((span_by_span, weight.grad), expected)
    head.weight.grad = None
    span_by_span = backward_through_head(states, head, tokens, 0.7, entropy, chunk, loss, mask)
    torch.testing.assert_close((span_by_span, head.weight.grad), expected)


def test_a_loss_without_the_entropy_or_the_logprobs() -> None:
    hidden, weight, tokens = head_and_states()
    for loss in (lambda s, lp, h: lp.sum(), lambda s, lp, h: h.sum()):
        found = backward_through_linear_head(hidden.detach(), weight, tokens, 1.0, True, 3, loss)
        logprobs, entropies = linear_head_logprobs(hidden, weight, tokens, 1.0, True, 100)
        expected = torch.autograd.grad(loss(None, logprobs, entropies), hidden)[0]
        torch.testing.assert_close(found, expected)


def test_derivatives_are_those_of_the_formula() -> None:
    hidden, weight, tokens = head_and_states()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_head_logprobs(h, w, tokens, 1.3, True, 4), (hidden, weight)
    )


def test_probabilities_that_are_0_in_float32_do_no_harm() -> None:
    """π underflows where a logit is 104 below the largest: the log-prob is exact, the entropy 0, gradients finite."""
    hidden = torch.eye(2).requires_grad_()
    weight = torch.tensor([[0.0, 300.0], [-200.0, 0.0], [-400.0, -300.0]])
    logprobs, entropies = linear_head_logprobs(hidden, weight, torch.tensor([1, 2]), 1.0, True, 8)
    assert logprobs.tolist() == [-200.0, -600.0]
    assert entropies is not None
    assert entropies.tolist() == [0.0, 0.0]
    (logprobs.sum() + entropies.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-200.0, -300.0], [-400.0, -600.0]]


@pytest.mark.parametrize("chunk", [3, 64])
def test_products_in_bf16_and_the_rest_in_float32(chunk: int) -> None:
    """Log-probs and entropies are those of the rounded logits; gradients are near those without rounding."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(10, 64, generator=draw), torch.randn(211, 64, generator=draw) / 8
    tokens, mix = torch.randint(211, (10,), generator=draw), torch.randn(2, 10, generator=draw)
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    low = [x.clone().requires_grad_() for x in (hidden, weight)]

    def sums(logprobs: Tensor, entropies: Tensor | None) -> Tensor:
        assert entropies is not None
        return (mix[0] * logprobs).sum() + (mix[1] * entropies).sum()

    found = linear_head_logprobs(low[0], low[1], tokens, 0.7, True, chunk, None, torch.bfloat16)
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float() / 0.7
    for one, other in zip(found, logprobs_and_entropy(logits, tokens), strict=True):
        assert one is not None
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)
    sums(*found).backward()
    sums(*linear_head_logprobs(exact[0], exact[1], tokens, 0.7, True, chunk)).backward()

    leaf = weight.clone().requires_grad_()
    span_by_span = backward_through_linear_head(
        hidden, leaf, tokens, 0.7, True, chunk,
        lambda span, logprobs, entropies: (mix[0, span] * logprobs).sum() + (mix[1, span] * entropies).sum(),
        None, torch.bfloat16,
    )  # fmt: skip
    for one, other, wanted in zip((low[0].grad, low[1].grad), (span_by_span, leaf.grad), exact, strict=True):
        assert one is not None
        assert wanted.grad is not None
        torch.testing.assert_close(one, other)
        assert 0 < float((one - wanted.grad).norm() / wanted.grad.norm()) < 0.01
