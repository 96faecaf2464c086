"""Section 4, item 24: a KL that stays with its tokens under GAE over turns and under estimators of responses.

Two turns of two tokens from a vocabulary of 2, with a token of the environment between them: 16 conversations, all
enumerated. J is the expected score less β times the KL, differentiated by autograd.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from proxlm.rl.advantages import kl_advantages, turn_gae
from proxlm.rl.shaping import token_rewards

BETA = 0.3
TALKS = torch.tensor(list(itertools.product(range(2), repeat=4)))
PREFIXES = {p: i for i, p in enumerate(p for t in range(4) for p in itertools.product(range(2), repeat=t))}
STATES = torch.tensor([[PREFIXES[tuple(talk[:t])] for t in range(4)] for talk in TALKS.tolist()])
OFFSETS = torch.arange(17) * 5
MASK = torch.tensor([True, True, False, True, True]).repeat(16)


def setting(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((len(PREFIXES), 2), (len(PREFIXES), 2), (16,), (len(PREFIXES),))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def logprobs_of(logits):
    """log π of the four chosen tokens of each conversation, [16, 4]."""
    return torch.log_softmax(logits, -1)[STATES, TALKS]


def with_environment(chosen):
    """[16, 4] → flat [16 · 5], 9 for the environment's token."""
    between = torch.full((16, 1), 9.0, dtype=torch.float64)
    return torch.cat([chosen[:, :2], between, chosen[:, 2:]], 1).flatten()


def expected_gradient(logits, reference, scores, values, lam_of_kl, local=True):
    logits = logits.clone().requires_grad_()
    logprobs = logprobs_of(logits)
    kl = with_environment(logprobs.detach() - logprobs_of(reference))
    rewards = token_rewards(scores, kl, 0.0 if local else BETA, MASK, OFFSETS)
    advantages, _ = turn_gae(rewards, with_environment(values[STATES]), MASK, OFFSETS, 1.0, 1.0)
    if local:
        advantages = advantages + kl_advantages(kl, BETA, MASK, OFFSETS, 1.0, lam_of_kl)
    weight = logprobs.detach().sum(-1).exp().repeat_interleave(5)
    terms = weight * advantages * torch.where(MASK, with_environment(logprobs), 0.0)
    return torch.autograd.grad(terms.sum(), logits)[0]


@pytest.mark.checklist(24)
@pytest.mark.checklist(7)
@pytest.mark.parametrize("seed", range(3))
def test_with_all_that_follows_the_gradient_is_exact_with_any_critic(seed):
    logits, reference, scores, values = setting(seed)
    free = logits.clone().requires_grad_()
    logprobs = logprobs_of(free)
    kl = (logprobs - logprobs_of(reference)).sum(-1)
    (wanted,) = torch.autograd.grad((logprobs.sum(-1).exp() * (scores - BETA * kl)).sum(), free)
    got = expected_gradient(logits, reference, scores, values, 1.0)
    assert torch.allclose(got, wanted, atol=1e-12)
    # The lump of a turn has the same expectation; what differs is its variance.
    assert torch.allclose(
        expected_gradient(logits, reference, scores, values, 1.0, local=False), wanted, atol=1e-12
    )


@pytest.mark.checklist(24)
@pytest.mark.parametrize("seed", range(3))
def test_with_its_own_alone_it_is_the_gradient_of_each_state_s_kl(seed):
    """Σ over states, as often as they are met, of −β ∇ KL(π(· | s) ‖ π_ref(· | s)); the score's part as before."""
    logits, reference, scores, values = setting(seed)
    free = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(free, -1)
    of_state = (logprobs.exp() * (logprobs - torch.log_softmax(reference, -1))).sum(-1)
    probability = logprobs_of(free).sum(-1).exp()
    met = torch.zeros(len(PREFIXES), dtype=torch.float64)
    met.index_add_(0, STATES.flatten(), probability.detach().repeat_interleave(4))
    (wanted,) = torch.autograd.grad((probability * scores).sum() - BETA * (met * of_state).sum(), free)
    got = expected_gradient(logits, reference, scores, values, 0.0)
    assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.checklist(24)
def test_by_hand():
    """β = 0.5, γλ = 0.5: tokens with KL 4, 2 and 8, one of the environment after the first; then another response."""
    kl = torch.tensor([4.0, 77.0, 2.0, 8.0, 6.0])
    mask, offsets = torch.tensor([True, False, True, True, True]), torch.tensor([0, 4, 5])
    wanted = [-0.5 * (4 + 1 + 2), 0.0, -0.5 * (2 + 4), -4.0, -3.0]
    assert kl_advantages(kl, 0.5, mask, offsets, 1.0, 0.5).tolist() == wanted
    assert kl_advantages(kl, 0.5, mask, offsets, 0.5, 1.0).tolist() == wanted
    assert kl_advantages(kl, 0.5, mask, offsets, 1.0, 0.0).tolist() == [-2.0, 0.0, -1.0, -4.0, -3.0]
    nobody = kl_advantages(kl, 0.5, mask & False, offsets, 1.0, 0.5)
    assert nobody.tolist() == [0.0] * 5
