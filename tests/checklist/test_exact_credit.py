"""Credit of single tokens: every estimator's expectation, given the token, against Q − V by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from proxlm.rl.estimators import AdvantageInputs, gae_advantages, rloo_advantages
from proxlm.rl.exact import credit_quality, exact_credit

V, T, END, GAMMA = 3, 3, 2, 0.9
LAMBDAS = [0.0, 0.5, 0.95, 1.0]
# Every response: it ends with END, or at the full length.
RESPONSES = [
    y
    for t in range(1, T + 1)
    for y in itertools.product(range(V), repeat=t)
    if END not in y[:-1] and (y[-1] == END or t == T)
]
TOKENS = torch.tensor([token for y in RESPONSES for token in y])
LENGTHS = torch.tensor([len(y) for y in RESPONSES])
OFFSETS = torch.cat([torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0)])
ROWS = torch.repeat_interleave(torch.arange(len(RESPONSES)), LENGTHS)
SCORES = {y: math.sin(1 + sum((i + 2) * (a + 1) for i, a in enumerate(y))) for y in RESPONSES}


def score(responses):
    return torch.tensor([SCORES[tuple(y)] for y in responses.tolist()], dtype=torch.float64)


def table(seed, scale=1.0):
    """A number for each prefix and token; equal prefixes have equal numbers, wherever they stand."""

    def numbers(prefixes):
        rows = []
        for prefix in prefixes.tolist():
            draw = torch.Generator().manual_seed(seed + hash(tuple(prefix)) % 10_000)
            rows.append(scale * torch.randn(V, generator=draw, dtype=torch.float64))
        return torch.stack(rows) if rows else torch.zeros(0, V, dtype=torch.float64)

    return numbers


def credit_of(seed, gamma=GAMMA, token_reward=None):
    logits = table(seed)
    return exact_credit(lambda p: torch.log_softmax(logits(p), -1), score, V, T, END, token_reward, gamma)


def token_rewards(token_reward=None):
    """The reward of each token of each response, the score at the last one."""
    rewards = torch.zeros(len(TOKENS), dtype=torch.float64)
    rewards[OFFSETS[1:] - 1] = score_of_all()
    if token_reward is not None:
        for i, row in enumerate(ROWS.tolist()):
            prefix = RESPONSES[row][: i - int(OFFSETS[row])]
            rewards[i] += token_reward(torch.tensor([prefix], dtype=torch.int64))[0, TOKENS[i]]
    return rewards


def score_of_all():
    return torch.tensor([SCORES[y] for y in RESPONSES], dtype=torch.float64)


def given_the_token(credit, numbers):
    """E[numbers | prefix, token] for each token of each response: over all responses with the same beginning."""
    at = credit.prefixes(TOKENS, OFFSETS)
    logp = credit.logprobs[at, TOKENS]
    probability = torch.zeros(len(RESPONSES), dtype=torch.float64).index_add_(0, ROWS, logp).exp()[ROWS]
    same = (at[:, None] == at) & (TOKENS[:, None] == TOKENS)
    return (same * probability * numbers).sum(1) / (same * probability).sum(1)


def inputs(rewards, values, gamma=GAMMA, **more):
    mask = torch.ones(len(rewards), dtype=torch.bool)
    groups = torch.arange(len(RESPONSES))
    return AdvantageInputs(rewards, values, mask, OFFSETS, groups, gamma=gamma, **more)


def any_critic(credit, seed=5):
    """Values that are wrong everywhere, and their errors, before each token and by prefix."""
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.randn(len(credit.values), generator=draw, dtype=torch.float64)
    return credit.values + wrong, wrong


@pytest.mark.checklist(47)
def test_by_hand():
    """Two tokens, each with probability 1/2; a response is worth 1 if its first token is 1, whatever follows."""

    def half(prefixes):
        return torch.full((len(prefixes), 2), 0.5).log()

    credit = exact_credit(half, lambda y: (y[:, 0] == 1).float(), 2, 2)
    assert credit.q.flatten().tolist() == pytest.approx([0, 1, 0, 0, 1, 1], abs=1e-6)
    assert credit.values.tolist() == pytest.approx([0.5, 0, 1], abs=1e-6)
    tokens, offsets = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 2, 4])
    assert credit.advantages(tokens, offsets).tolist() == pytest.approx([0.5, 0, -0.5, 0], abs=1e-6)
    assert credit.prefixes(tokens, offsets).tolist() == [0, 2, 0, 1]
    assert credit.end == -1
    # Token 1 ends a response; each token costs 0.1; a reward counts half a step later. Behind an end is nothing.
    cost = exact_credit(
        half, lambda y: y.sum(-1).float(), 2, 2, 1, lambda p: torch.full((len(p), 2), -0.1), 0.5
    )
    expected = [[-0.1 + 0.5 * 0.4, 0.9], [-0.1, 0.9], [0, 0]]
    torch.testing.assert_close(cost.q, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(
        cost.values, torch.tensor([0.5, 0.4, 0], dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert cost.end == 1
    assert bool(cost.logprobs[2].isneginf().all())


@pytest.mark.checklist(47)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_q_and_v_are_means_over_all_continuations(gamma):
    penalty = table(77, 0.3)
    credit = credit_of(1, gamma, penalty)
    rewards = token_rewards(penalty)
    returns = gae_advantages(inputs(rewards, torch.zeros_like(rewards), gamma, lam=1.0)).advantages
    at = credit.prefixes(TOKENS, OFFSETS)
    torch.testing.assert_close(credit.q[at, TOKENS], given_the_token(credit, returns), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        credit.advantages(TOKENS, OFFSETS), (credit.q - credit.values[:, None])[at, TOKENS]
    )
    # The policy's own mean of A is 0 in every state.
    means = (credit.logprobs.exp() * (credit.q - credit.values[:, None])).sum(-1)
    assert float(means[at].abs().max()) < 1e-12
    assert float((credit.logprobs[at].exp().sum(-1) - 1).abs().max()) < 1e-12


@pytest.mark.checklist(47)
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_gae_without_traces_off_is_the_exact_credit_less_the_value_error(seed, gamma):
    """λ = 1, any critic: E[A_GAE | s, a] = A(s, a) − (V̂(s) − V(s))."""
    credit = credit_of(seed, gamma)
    values, wrong = any_critic(credit)
    at = credit.prefixes(TOKENS, OFFSETS)
    estimated = gae_advantages(inputs(token_rewards(), values[at], gamma, lam=1.0)).advantages
    expected = credit.advantages(TOKENS, OFFSETS) - wrong[at]
    torch.testing.assert_close(given_the_token(credit, estimated), expected, atol=1e-12, rtol=0)


@pytest.mark.checklist(47)
@pytest.mark.parametrize("lam", LAMBDAS)
def test_with_the_exact_critic_every_trace_gives_the_exact_credit(lam):
    credit = credit_of(2)
    at = credit.prefixes(TOKENS, OFFSETS)
    estimated = gae_advantages(inputs(token_rewards(), credit.values[at], lam=lam)).advantages
    exact = credit.advantages(TOKENS, OFFSETS)
    torch.testing.assert_close(given_the_token(credit, estimated), exact, atol=1e-12, rtol=0)
    # A single response's is noisy for λ = 1, and at a response's last token exact whatever λ is.
    last = OFFSETS[1:] - 1
    torch.testing.assert_close(estimated[last], exact[last], atol=1e-12, rtol=0)
    assert (credit_quality(estimated, exact, torch.ones(len(at), dtype=torch.bool)).rmse > 0.1) == (lam > 0.4)


@pytest.mark.checklist(47)
def test_without_traces_the_critics_error_stays():
    """λ = 0: E[δ | s, a] = A(s, a) + γ (V̂ − V)(s a) − (V̂ − V)(s)."""
    credit = credit_of(3)
    values, wrong = any_critic(credit)
    at = credit.prefixes(TOKENS, OFFSETS)
    estimated = gae_advantages(inputs(token_rewards(), values[at], lam=0.0)).advantages
    following = torch.zeros(len(at), dtype=torch.float64)
    inner = torch.ones(len(at), dtype=torch.bool)
    inner[OFFSETS[1:] - 1] = False
    following[inner] = wrong[at[inner] * V + TOKENS[inner] + 1]
    expected = credit.advantages(TOKENS, OFFSETS) + GAMMA * following - wrong[at]
    torch.testing.assert_close(given_the_token(credit, estimated), expected, atol=1e-12, rtol=0)


@pytest.mark.checklist(47)
def test_one_turn_has_one_credit():
    """Turn GAE over a single turn: E[A | s_t, a_t] = Q(s_t, a_t) − V̂(s_0), the same as a baseline of the prompt."""
    credit = credit_of(4, 1.0)
    values, wrong = any_critic(credit)
    at = credit.prefixes(TOKENS, OFFSETS)
    estimated = gae_advantages(inputs(token_rewards(), values[at], 1.0, lam=0.95, turns=True)).advantages
    expected = credit.q[at, TOKENS] - credit.values[0] - wrong[0]
    torch.testing.assert_close(given_the_token(credit, estimated), expected, atol=1e-12, rtol=0)


@pytest.mark.checklist(47)
def test_group_estimators_are_off_by_what_the_prefix_has_changed():
    """RLOO, two responses: E[A | s_t, a_t] = Q(s_t, a_t) − V(s_0) = A(s_t, a_t) + V(s_t) − V(s_0)."""
    credit = credit_of(6, 1.0)
    at = credit.prefixes(TOKENS, OFFSETS)
    logp = torch.zeros(len(RESPONSES), dtype=torch.float64).index_add_(0, ROWS, credit.logprobs[at, TOKENS])
    found = torch.zeros(len(TOKENS), dtype=torch.float64)
    rewards = token_rewards()
    for other, y in enumerate(RESPONSES):  # the group's other response
        both = torch.cat([rewards, token_rewards_of(y).repeat(len(RESPONSES))])
        offsets = torch.cat([OFFSETS, OFFSETS[-1] + len(y) * torch.arange(1, len(RESPONSES) + 1)])
        groups = torch.arange(len(RESPONSES)).repeat(2)
        mask = torch.ones(len(both), dtype=torch.bool)
        given = AdvantageInputs(both, torch.zeros_like(both), mask, offsets, groups, gamma=1.0)
        found += logp[other].exp() * rloo_advantages(given).advantages[: len(TOKENS)]
    expected = credit.advantages(TOKENS, OFFSETS) + credit.values[at] - credit.values[0]
    torch.testing.assert_close(given_the_token(credit, found), expected, atol=1e-12, rtol=0)


def token_rewards_of(response):
    rewards = torch.zeros(len(response), dtype=torch.float64)
    rewards[-1] = SCORES[response]
    return rewards


@pytest.mark.checklist(47)
def test_quality_by_hand():
    exact, mask = torch.tensor([1.0, -1.0, 0.0, 9.0]), torch.tensor([True, True, True, False])
    found = credit_quality(torch.tensor([3.0, -1.0, 1.0, 0.0]), exact, mask)
    assert found.correlation == pytest.approx(1.0)
    assert found.rmse == pytest.approx(math.sqrt(5 / 3))
    found = credit_quality(torch.tensor([0.0, 0.0, 3.0, 0.0]), exact, mask)
    assert found.correlation == pytest.approx(0.0, abs=1e-12)
    assert found.rmse == pytest.approx(math.sqrt(11 / 3))
    assert credit_quality(-exact, exact, mask).correlation == pytest.approx(-1.0)
    # With means that are not 0: x = (2, 3, 7), y = (1, 4, 4), products 6, squares 14 and 6.
    found = credit_quality(torch.tensor([2.0, 3, 7, 0]), torch.tensor([1.0, 4, 4, 0]), mask)
    assert found.correlation == pytest.approx(6 / math.sqrt(14 * 6))
    # The mean of equal numbers is off by a rounding, of which no correlation may be made.
    equal = torch.full((4,), 0.1, dtype=torch.float64)
    assert float(equal[:3].mean()) != 0.1
    flat = credit_quality(equal, exact, mask)
    assert math.isnan(flat.correlation)
    assert flat.rmse == pytest.approx(math.sqrt((0.9**2 + 1.1**2 + 0.1**2) / 3))
    assert math.isnan(credit_quality(exact, equal, mask).correlation)


@pytest.mark.checklist(47)
def test_what_cannot_be_enumerated_or_compared_is_refused():
    with pytest.raises(ValueError, match="a vocabulary of 11 and a length of 7 are 1,948,717 prefixes"):
        exact_credit(table(0), score, 11, 7)
    for vocabulary, length in ((0, 1), (2, 0)):
        with pytest.raises(ValueError, match="can be enumerated"):
            exact_credit(table(0), score, vocabulary, length)
    credit = credit_of(0)
    for behind in ([0, 0, 0, 0], [END, 0]):
        with pytest.raises(ValueError, match=f"token {len(behind) - 1} of a response has no Q"):
            credit.advantages(torch.tensor([0, 0, *behind]), torch.tensor([0, 2, 2 + len(behind)]))
    some = torch.ones(2)
    for given in (
        (some, some[:1], some.bool()),
        (some[:1], some, some.bool()),
        (some, some, some[:1].bool()),
    ):
        with pytest.raises(ValueError, match="shapes differ"):
            credit_quality(*given)
    with pytest.raises(ValueError, match="or no token counts"):
        credit_quality(some, some, torch.zeros(2, dtype=torch.bool))


@pytest.mark.checklist(47)
def test_a_million_prefixes_is_the_limit():
    """1 + 1000 + … : a vocabulary of 999,999 and a length of 2 is the largest of two levels."""
    with pytest.raises(ValueError, match="1,000,001 prefixes; from 1 to 1,000,000 can"):
        exact_credit(table(0), score, 10**6, 2)
