"""Tokens of one response by several versions, each with an engine of its own: all responses of a toy, enumerated.

Vocabulary of 3, of which token 0 ends a response, and at most 3 tokens: 15 responses. Version v samples the token at
position v; version 3 learns. Every policy is a table of logits, one row for each prefix.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from proxlm.rl.corrections import importance_weights, split_log_weights
from proxlm.rl.policy_losses import LossInputs, ppo_loss
from proxlm.rl.ragged import offsets_of, segment_sum

SIZE, LONGEST = 3, 3
OPEN = [p for t in range(LONGEST) for p in itertools.product((1, 2), repeat=t)]  # prefixes that go on
ROW = {prefix: row for row, prefix in enumerate(OPEN)}
RESPONSES = [
    (*prefix, token) for prefix in OPEN for token in range(SIZE) if token == 0 or len(prefix) + 1 == LONGEST
]
OFFSETS = offsets_of(torch.tensor([len(y) for y in RESPONSES]))
AT = [(ROW[y[:t]], y[t]) for y in RESPONSES for t in range(len(y))]  # (row, token) of each response token
ROWS, TOKENS = (torch.tensor(column) for column in zip(*AT, strict=True))
VERSIONS = torch.tensor([t for y in RESPONSES for t in range(len(y))])
CHOSEN = torch.ones(len(AT), dtype=torch.bool)


def logprobs(table: Tensor) -> Tensor:
    """Of every response token, [R]."""
    return torch.log_softmax(table, -1)[ROWS, TOKENS]


class Toy:
    """Policies of four versions, what their engines make of them, and a reward for each response."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        tables = draw(4, len(OPEN), SIZE)
        self.now = tables[3].clone().requires_grad_()
        self.rewards = draw(len(RESPONSES))
        own = torch.stack([logprobs(table) for table in tables])
        served = torch.stack([logprobs(table + 0.3 * draw(len(OPEN), SIZE)) for table in tables])
        self.old, self.of_first = own[3], served[0]
        self.trainer, self.rollout = (of.gather(0, VERSIONS[None])[0] for of in (own, served))
        # How often each response comes: the product of its tokens, each of its own version's engine.
        self.share = segment_sum(self.rollout, OFFSETS).exp()

    def weights(self, mode: str, low: float = 0.0, high: float = float("inf")) -> Tensor:
        """Of both causes, each by itself."""
        logs = split_log_weights(self.old, self.rollout, self.trainer, VERSIONS != 3)
        return torch.stack(
            [importance_weights(part, CHOSEN, OFFSETS, mode, low, high) for part in logs]
        ).prod(0)

    def expected_gradient(self, weights: Tensor) -> Tensor:
        """Of the clipped loss with these weights, over all responses that the versions may write."""
        lengths = OFFSETS[1:] - OFFSETS[:-1]
        advantages = self.rewards.repeat_interleave(lengths)
        losses = ppo_loss(LossInputs(logprobs(self.now), self.old, advantages, CHOSEN)).loss
        loss = (self.share.repeat_interleave(lengths) * weights * losses).sum()
        (gradient,) = torch.autograd.grad(loss, self.now)
        return -gradient

    def on_policy_gradient(self) -> Tensor:
        """Of the expected reward."""
        (gradient,) = torch.autograd.grad(
            (segment_sum(logprobs(self.now), OFFSETS).exp() * self.rewards).sum(), self.now
        )
        return gradient


@pytest.mark.checklist(20)
@pytest.mark.checklist(21)
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_the_on_policy_one_in_expectation(seed):
    toy = Toy(seed)
    assert float(toy.share.sum()) == pytest.approx(1.0, abs=1e-12)
    wanted = toy.on_policy_gradient()
    assert torch.allclose(toy.expected_gradient(toy.weights("sequence")), wanted, atol=1e-6)
    # Without weights, with one cause's alone, or with one version for all tokens it is another one.
    size = float(wanted.abs().max())
    engine, staleness = split_log_weights(toy.old, toy.rollout, toy.trainer, VERSIONS != 3)
    for logs in (torch.zeros_like(engine), engine, staleness, toy.old - toy.of_first):
        wrong = toy.expected_gradient(importance_weights(logs, CHOSEN, OFFSETS, "sequence"))
        assert float((wrong - wanted).abs().max()) > 0.02 * size


@pytest.mark.checklist(20)
@pytest.mark.parametrize("seed", range(4))
def test_weights_of_tokens_correct_the_token_but_not_what_stands_around_it(seed):
    """A token's own weight makes it the present policy's, in the states that the versions come to."""
    toy = Toy(seed)
    gradient = toy.expected_gradient(toy.weights("token"))
    # By hand: Σ over prefixes μ(prefix) Σ_a π(a | prefix) Q_μ(prefix, a) ∇ log π(a | prefix).
    policy = torch.softmax(toy.now, -1)
    wanted = torch.zeros_like(toy.now)
    for prefix in OPEN:
        visits, values = torch.zeros(()).double(), torch.zeros(SIZE).double()
        for token in range(SIZE):
            rows = [i for i, y in enumerate(RESPONSES) if y[: len(prefix) + 1] == (*prefix, token)]
            share = toy.share[rows]
            visits = visits + share.sum()
            values[token] = (share * toy.rewards[rows]).sum() / share.sum()
        p = policy[ROW[prefix]].detach()
        wanted[ROW[prefix]] = visits * p * (values - (p * values).sum())
    assert torch.allclose(gradient, wanted, atol=1e-6)
    biased = (gradient - toy.on_policy_gradient()).abs().max()
    assert float(biased) > 0.01


@pytest.mark.checklist(20)
def test_each_cause_is_bounded_by_itself_in_each_token():
    toy = Toy(0)
    engine, staleness = (toy.trainer - toy.rollout).exp(), (toy.old - toy.trainer).exp()
    found = toy.weights("token_truncate", high=1.5)
    assert torch.allclose(found, engine.clamp(max=1.5) * staleness.clamp(max=1.5))
    together = (engine * staleness).clamp(max=1.5)
    assert float((found - together).abs().max()) > 0.1
