"""A token-wise loss through an output head: chunks change memory, not gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from proxlm.kernels.head_gradient import backward_through_head
from proxlm.rl.logprobs import chunked_logprobs


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_a_loss_of_each_token_goes_backward_chunk_by_chunk(chunk, entropy):
    """The same gradients as with all logits at once; each chunk goes through the head once and is freed."""
    torch.manual_seed(0)
    head = nn.Linear(8, 11, dtype=torch.float64)
    hidden, tokens = torch.randn(10, 8, dtype=torch.float64), torch.randint(11, (10,))
    weights, seen = torch.randn(10, dtype=torch.float64), list[int]()

    def loss(span, logprobs, entropies):
        assert (entropies is not None) == entropy
        more = 0.1 * entropies if entropy else 0.0
        return (weights[span] * (logprobs.exp() + more)).sum()

    def counted(h):
        seen.append(len(h))
        return head(h)

    with_graph = hidden.clone().requires_grad_()
    got = backward_through_head(2.0 * with_graph / 2.0, counted, tokens, 0.7, entropy, chunk, loss)
    assert with_graph.grad is None  # the rest of the backward pass is the caller's
    got_head = head.weight.grad.clone()
    assert seen == [len(part) for part in hidden.split(chunk)]
    head.zero_grad()
    whole = hidden.clone().requires_grad_()
    loss(slice(0, 10), *chunked_logprobs(whole, head, tokens, 0.7, entropy, chunk=1000)).backward()
    torch.testing.assert_close(got, whole.grad)
    torch.testing.assert_close(got_head, head.weight.grad)
