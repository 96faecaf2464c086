"""Section 2, item 22: which responses are positive, and what raising their likelihood does."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.losses import positive_responses, token_weights

GROUPS = torch.tensor([0, 0, 1, 1, 1, 2])


@pytest.mark.checklist(22)
def test_by_hand():
    rewards = torch.tensor([0.2, 0.1, 1.0, 1.0, -1.0, 3.0])
    assert positive_responses(rewards, GROUPS, "threshold").tolist() == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert positive_responses(rewards, GROUPS, "threshold", 0.2).tolist() == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    # Both best of prompt 1; the only response of prompt 2 is not better than another.
    assert positive_responses(rewards, GROUPS, "best").tolist() == [True, False, True, True, False, False]
    assert positive_responses(rewards, GROUPS, "best", 9.0).tolist() == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    below = positive_responses(torch.tensor([-2.0, -3.0]), torch.tensor([0, 0]), "best")
    assert below.tolist() == [True, False]
    with pytest.raises(ValueError, match="which must be"):
        positive_responses(rewards, GROUPS, "all")


@pytest.mark.checklist(22)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_the_best_are_those_that_beat_another_and_are_beaten_by_none(rows):
    rewards, groups = (torch.tensor(x) for x in zip(*rows, strict=True))
    found = positive_responses(rewards.float(), groups.unique(return_inverse=True)[1], "best").tolist()
    for (reward, group), best in zip(rows, found, strict=True):
        others = [r for r, g in rows if g == group]
        assert best is (reward == max(others) and reward > min(others))


@pytest.mark.checklist(22)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_weights_are_over_positive_tokens_alone(aggregation):
    """Responses of 2, 3 and 1 tokens, the first and the last positive."""
    positive, offsets = torch.tensor([True, True, False, False, False, True]), torch.tensor([0, 2, 5, 6])
    wanted = {
        "token": [1 / 3, 1 / 3, 0, 0, 0, 1 / 3],
        "sequence": [1 / 4, 1 / 4, 0, 0, 0, 1 / 2],
        "fixed": [1 / 8, 1 / 8, 0, 0, 0, 1 / 8],
    }[aggregation]
    assert token_weights(positive, offsets, aggregation, 4).tolist() == pytest.approx(wanted)
    assert token_weights(positive & False, offsets, aggregation, 4).tolist() == [0.0] * 6


@pytest.mark.checklist(22)
@pytest.mark.parametrize("seed", range(3))
def test_the_expected_gradient_is_that_of_the_share_of_positive_responses(seed):
    """All 27 responses of 3 tokens over a vocabulary of 3: E[1[+] Σ ∇ log π] = ∇ P(+)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    rewards = torch.randn(27, generator=generator, dtype=torch.float64)
    responses = torch.tensor(list(itertools.product(range(3), repeat=3)))
    # The token before is the state; at the start it is 0.
    before = torch.cat([torch.zeros(27, 1, dtype=torch.int64), responses[:, :-1]], 1)
    logprobs = torch.log_softmax(logits, -1)[torch.arange(3), before, responses]
    positive = positive_responses(rewards, torch.zeros(27, dtype=torch.int64), "threshold", 0.3)
    probability = logprobs.sum(-1).exp()
    loss = -(probability.detach() * positive * logprobs.sum(-1)).sum()
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(probability * positive).sum(), logits)
    assert 0 < int(positive.sum()) < 27
    assert torch.allclose(got, wanted, atol=1e-12)
