"""Log-probs, entropies and gradients of large logits against closed forms in float64: nothing cancels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proxlm.kernels.head_gradient import backward_through_head
from proxlm.kernels.linear_head import backward_through_linear_head, linear_head_logprobs
from proxlm.rl.logprobs import logprobs_and_entropy

SIZES = [1.0, 1e2, 1e3, 1e4, 1e6]


def exact(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies, and the gradient of the sum of both at the logits, in float64."""
    z = logits.double().requires_grad_()
    logs = z.log_softmax(-1)
    logprobs = logs.gather(-1, tokens[:, None])[:, 0]
    entropies = -(logs.exp() * logs).sum(-1)
    (logprobs.sum() + entropies.sum()).backward()
    assert z.grad is not None
    return logprobs.detach(), entropies.detach(), z.grad


def cases(size: float, vocabulary: int, spread: bool) -> tuple[Tensor, Tensor]:
    """Logits of this size: near each other around it, so that the entropy is large; or spread over it."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, vocabulary, generator=generator)
    logits = z * size if spread else z * 3 + size
    return logits, torch.randint(vocabulary, (8,), generator=generator)


@pytest.mark.checklist(22)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [4, 5000])
@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_any_heads_logits(size: float, spread: bool, vocabulary: int, dtype: torch.dtype) -> None:
    logits, tokens = cases(size, vocabulary, spread)
    leaf = logits.to(dtype).requires_grad_()
    wanted = exact(leaf.detach(), tokens)
    logprobs, entropies = logprobs_and_entropy(leaf, tokens)
    assert entropies is not None
    (logprobs.sum() + entropies.sum()).backward()
    assert leaf.grad is not None
    # A log-prob is a difference of logits, so it is rounded as a number of its own size.
    assert torch.allclose(logprobs.double(), wanted[0], rtol=1e-6, atol=2e-6)
    assert torch.allclose(entropies.double(), wanted[1], rtol=1e-6, atol=2e-6)
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(leaf.grad.double(), wanted[2], rtol=rounding, atol=5e-6)


@pytest.mark.checklist(22)
@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_added_to_all_logits_changes_nothing(size: float, temperature: float) -> None:
    """Whole numbers, which float32 adds exactly."""
    logits, tokens = torch.arange(-6.0, 6.0).expand(3, -1).contiguous(), torch.tensor([0, 5, 11])
    plain, moved = (logprobs_and_entropy(x, tokens, temperature) for x in (logits, logits + size))
    for a, b in zip(plain, moved, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.checklist(22)
@pytest.mark.parametrize("size", SIZES[:4])
def test_a_head_that_is_one_matrix(size: float) -> None:
    """Its first column adds the size to every logit: the logits are large and near each other."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.cat([torch.ones(6, 1), torch.randn(6, 15, generator=generator).round()], dim=-1)
    weight = torch.cat(
        [torch.full((300, 1), size), torch.randn(300, 15, generator=generator).round()], dim=-1
    )
    tokens = torch.randint(300, (6,), generator=generator)
    logits = hidden @ weight.T  # of whole numbers, so exact
    wanted = exact(logits, tokens)
    logprobs, entropies = linear_head_logprobs(hidden, weight, tokens, 1.0, True, 4)
    assert entropies is not None
    assert torch.allclose(logprobs.double(), wanted[0], rtol=1e-6, atol=5e-6)
    assert torch.allclose(entropies.double(), wanted[1], rtol=1e-6, atol=1e-5)

    def loss(_span: slice, found: Tensor, entropy: Tensor | None) -> Tensor:
        assert entropy is not None
        return found.sum() + entropy.sum()

    at_states = wanted[2] @ weight.double()
    matrix = torch.nn.Parameter(weight.clone())
    ours = backward_through_linear_head(hidden, matrix, tokens, 1.0, True, 4, loss)
    theirs = backward_through_head(hidden, lambda h: h @ weight.T, tokens, 1.0, True, 4, loss)
    for gradient in (ours, theirs):
        # The gradients of a row's logits sum to 0; what rounding leaves of that is multiplied by the first column.
        assert torch.allclose(gradient[:, 1:].double(), at_states[:, 1:], rtol=1e-5, atol=1e-5)
    assert matrix.grad is not None
    assert torch.allclose(matrix.grad.double(), wanted[2].T @ hidden.double(), rtol=1e-5, atol=1e-5)
