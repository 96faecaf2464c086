"""The exact advantage of every token, by enumeration, where vocabulary and length are tiny.

What an estimator does from samples is here a sum over all that can happen. So it can be said how good an estimate of
the credit of single tokens is, not only whether its mean over many responses is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# So many prefixes are enumerated at most; each has 16 bytes for each token of the vocabulary.
MOST_PREFIXES = 10**6


class ExactCredit(NamedTuple):
    """Q and V of every prefix, of a policy and a reward.

    Prefixes have numbers: the empty one is 0, and prefix p with token a behind it is p · V + a + 1, V being the
    vocabulary's size. Those of a response that has ended, and of full length, have no Q.

    logprobs [P, V]: log π(a | s); q [P, V]: Q(s, a), the expected discounted sum of rewards from a on; values [P]:
    V(s) = Σ_a π(a | s) Q(s, a); end: the token after which nothing follows, −1: none.
    """

    logprobs: Tensor
    q: Tensor
    values: Tensor
    end: int

    def advantages(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """A(s, a) = Q(s, a) − V(s) of each token of responses.

        Args:
            tokens: [R] int64.
            offsets: Where each response begins, [B+1].

        Raises:
            ValueError: A response is longer than what was enumerated, or goes on behind the end.
        """
        at = self.prefixes(tokens, offsets)
        return self.q[at, tokens] - self.values[at]

    def prefixes(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """The number of the prefix before each token [R]; `values` of these is the exact critic."""
        found = list[int]()
        for row in tokens.split((offsets[1:] - offsets[:-1]).tolist()):
            number, over = 0, False
            for i, token in enumerate(row.tolist()):
                if over or number >= len(self.q):
                    raise ValueError(f"token {i} of a response has no Q: it is behind its end")
                found.append(number)
                number, over = number * self.q.shape[1] + token + 1, token == self.end
        return torch.tensor(found, dtype=torch.int64)


def exact_credit(
    next_logprobs: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    vocabulary: int,
    length: int,
    end: int = -1,
    token_reward: Callable[[Tensor], Tensor] | None = None,
    gamma: float = 1.0,
) -> ExactCredit:
    """Q and V of a policy over all responses, by Bellman's equation from the last token back.

        Q(s, a) = r(s, a) + γ V(s a),   V(s) = Σ_a π(a | s) Q(s, a),   r = score of the response at its last token

    Args:
        next_logprobs: Prefixes [n, t] int64 → log π of the next token [n, V].
        score: Responses [n, t] int64, whole → what each is worth [n].
        vocabulary: V; tokens are 0 to V − 1.
        length: Most tokens of a response, at least 1.
        end: The token that ends a response; −1: all have the full length.
        token_reward: Prefixes [n, t] → a reward of each next token [n, V], −β times its log-ratio to a reference for
            instance, beside the score; None: 0.
        gamma: γ.

    Raises:
        ValueError: There are more than a million prefixes.
    """
    count = sum(vocabulary**t for t in range(length))
    if vocabulary < 1 or length < 1 or count > MOST_PREFIXES:
        raise ValueError(
            f"exact_credit: a vocabulary of {vocabulary} and a length of {length} are {count:,} prefixes; from 1 to"
            f" {MOST_PREFIXES:,} can be enumerated"
        )
    logprobs = torch.full((count, vocabulary), -torch.inf, dtype=torch.float64)
    q = torch.zeros_like(logprobs)
    levels, first = list[slice](), 0
    prefixes, alive = torch.empty(1, 0, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
    for t in range(length):
        levels.append(slice(first, first + len(prefixes)))
        here, live, following = (
            first + alive.nonzero()[:, 0],
            prefixes[alive],
            _followed(prefixes, vocabulary),
        )
        logprobs[here] = next_logprobs(live).double()
        alive = alive.repeat_interleave(vocabulary)
        over = alive & ((following[:, -1] == end) | (t == length - 1))
        if bool(over.any()):
            q[levels[t]].view(-1)[over] = score(following[over]).double()
        if token_reward is not None:
            q[here] += token_reward(live).double()
        first, prefixes, alive = first + len(prefixes), following, alive & ~over
    values = torch.empty(count, dtype=torch.float64)
    for t in reversed(range(length)):
        if t < length - 1:
            q[levels[t]] += gamma * values[levels[t + 1]].view(-1, vocabulary)
        # Where a response has ended q is 0, and no token has a probability.
        values[levels[t]] = (logprobs[levels[t]].exp() * q[levels[t]]).sum(-1)
    return ExactCredit(logprobs, q, values, end)


def _followed(prefixes: Tensor, vocabulary: int) -> Tensor:
    """Each prefix [n, t] with each token behind it [n · V, t + 1]."""
    tokens = torch.arange(vocabulary).repeat(len(prefixes))
    return torch.cat([prefixes.repeat_interleave(vocabulary, 0), tokens[:, None]], 1)


class CreditQuality(NamedTuple):
    """How near estimates of the tokens' advantages are to the exact ones.

    correlation: Pearson's over tokens, whatever scale the estimates have; NaN where either does not vary. rmse: the
    root of the mean squared difference, in units of the reward.
    """

    correlation: float
    rmse: float


def credit_quality(estimated: Tensor, exact: Tensor, mask: Tensor) -> CreditQuality:
    """Compare estimated advantages with exact ones, token by token.

    Args:
        estimated: [R].
        exact: [R].
        mask: [R] bool, True for the tokens that count, at least one.
    """
    if not estimated.shape == exact.shape == mask.shape or not bool(mask.any()):
        shapes = f"{tuple(estimated.shape)}, {tuple(exact.shape)}, mask {tuple(mask.shape)}"
        raise ValueError(f"credit_quality: shapes differ, or no token counts: {shapes}")
    x, y = estimated[mask].double(), exact[mask].double()
    rmse = float((x - y).square().mean().sqrt())
    a, b = x - x.mean(), y - y.mean()
    varies = float(x.max()) > float(x.min()) and float(y.max()) > float(y.min())
    return CreditQuality(float(a.dot(b) / (a.norm() * b.norm())) if varies else math.nan, rmse)
