"""GAE, whitening and explained variance against hand-computed numbers and independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.advantages import explained_variance, explained_variance_by_position, gae, whiten


def flat(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def rows(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


@pytest.mark.checklist(1)
@pytest.mark.checklist(4)
def test_three_steps_by_hand_ended():
    # δ2 = 1 − 0.3 = 0.7; δ1 = 0.9·0.3 − 0.2 = 0.07; δ0 = 0.9·0.2 − 0.5 = −0.32; γλ = 0.72
    advantages, returns = gae(flat(0, 0, 1), flat(0.5, 0.2, 0.3), torch.ones(3).bool(), rows(3), 0.9, 0.8)
    assert advantages.tolist() == pytest.approx([-0.32 + 0.72 * (0.07 + 0.72 * 0.7), 0.07 + 0.72 * 0.7, 0.7])
    assert returns.tolist() == pytest.approx([0.09328 + 0.5, 0.574 + 0.2, 1.0])


@pytest.mark.checklist(4)
def test_three_steps_by_hand_bootstrapped():
    # As above with V(after) = 2: δ2 = 1 + 0.9·2 − 0.3 = 2.5.
    advantages, _ = gae(flat(0, 0, 1), flat(0.5, 0.2, 0.3), torch.ones(3).bool(), rows(3), 0.9, 0.8, flat(2))
    assert advantages.tolist() == pytest.approx([-0.32 + 0.72 * (0.07 + 0.72 * 2.5), 0.07 + 0.72 * 2.5, 2.5])


def quadratic_gae(rewards, values, gamma, lam, bootstrap):
    """A_t = Σ_k (γλ)^k δ_{t+k}, summed term by term."""
    after = [*values[1:], bootstrap]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, after, strict=True)]
    return [
        sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))
    ]


numbers = st.floats(-5, 5, allow_nan=False)
row = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12)
unit = st.floats(0, 1)


@pytest.mark.checklist(1)
@given(st.lists(row, min_size=1, max_size=5), unit, unit, st.booleans())
def test_equals_the_quadratic_sum_for_ragged_rows(batch, gamma, lam, cut):
    rewards = [r for one in batch for r, _ in one]
    values = [v for one in batch for _, v in one]
    after = [float(i + 1) if cut else 0.0 for i in range(len(batch))]
    got, returns = gae(
        flat(*rewards),
        flat(*values),
        torch.ones(len(values)).bool(),
        rows(*map(len, batch)),
        gamma,
        lam,
        flat(*after),
    )
    wanted = [
        a
        for one, end in zip(batch, after, strict=True)
        for a in quadratic_gae([r for r, _ in one], [v for _, v in one], gamma, lam, end)
    ]
    assert got.tolist() == pytest.approx(wanted, abs=1e-9)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(wanted, values, strict=True)], abs=1e-9)


@pytest.mark.checklist(1)
@given(row)
def test_lambda_0_is_the_temporal_difference_and_lambda_1_the_monte_carlo_error(one):
    r, v = flat(*(x for x, _ in one)), flat(*(x for _, x in one))
    mask, offsets = torch.ones(len(one)).bool(), rows(len(one))
    delta = r + torch.cat([v[1:], flat(0)]) - v
    assert torch.allclose(gae(r, v, mask, offsets, 1.0, 0.0)[0], delta)
    future = r.flip(0).cumsum(0).flip(0)
    assert torch.allclose(gae(r, v, mask, offsets, 1.0, 1.0)[0], future - v)


@pytest.mark.checklist(3)
@given(
    st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=1, max_size=15).filter(
        lambda tokens: any(acts for *_, acts in tokens)
    ),
    st.floats(0.1, 1),
    unit,
)
def test_unchosen_tokens_are_as_if_deleted(tokens, gamma, lam):
    """The reference deletes them and gives each one's reward to the chosen token before it."""
    first = next(i for i, token in enumerate(tokens) if token[2])
    tokens = tokens[first:]  # a reward before any choice belongs to nobody
    kept_r: list[float] = []
    kept_v: list[float] = []
    for reward, value, acts in tokens:
        if acts:
            kept_r.append(reward)
            kept_v.append(value)
        else:
            kept_r[-1] += reward
    wanted = quadratic_gae(kept_r, kept_v, gamma, lam, 0.0)
    mask = torch.tensor([acts for *_, acts in tokens])
    v = flat(*(x for _, x, _ in tokens))
    got, returns = gae(flat(*(x for x, *_ in tokens)), v, mask, rows(len(tokens)), gamma, lam)
    assert got[mask].tolist() == pytest.approx(wanted, abs=1e-9)
    assert torch.equal(got[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    assert torch.equal(returns[~mask], v[~mask])


@pytest.mark.checklist(2)
def test_returns_come_before_whitening():
    r, v, mask = flat(0, 1, 2), flat(1, 1, 1), torch.ones(3).bool()
    advantages, returns = gae(r, v, mask, rows(3), 1.0, 1.0)
    whiten(advantages, mask)
    assert returns.tolist() == [3, 3, 2]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="shapes do not fit"):
        gae(flat(1, 2), flat(1), torch.ones(1).bool(), rows(1), 1.0, 1.0)
    with pytest.raises(ValueError, match="offsets end at 3"):
        gae(flat(1, 2), flat(1, 2), torch.ones(2).bool(), rows(3), 1.0, 1.0)


@pytest.mark.checklist(8)
@given(st.lists(st.tuples(numbers, st.booleans()), min_size=2, max_size=30))
def test_whitening_has_masked_mean_0_and_variance_1_and_ignores_the_rest(pairs):
    x, mask = flat(*(v for v, _ in pairs)), torch.tensor([m for _, m in pairs])
    got = whiten(x, mask)
    assert torch.equal(got[~mask], torch.zeros_like(got[~mask]))
    assert torch.equal(whiten(torch.where(mask, x, 1e6), mask), got)
    if mask.sum() > 1 and float(x[mask].var(correction=0)) > 1e-3:
        assert float(got[mask].mean()) == pytest.approx(0, abs=1e-6)
        assert float(got[mask].var(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.checklist(8)
@pytest.mark.checklist(9)
def test_whitening_by_hand():
    # mean 2, population variance 2/3
    got = whiten(flat(1, 2, 3, 99), torch.tensor([True, True, True, False]))
    assert got.tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5), 0], abs=1e-7)
    kept = whiten(flat(1, 2, 3), torch.ones(3).bool(), shift_mean=False)
    assert kept.tolist() == pytest.approx([2 - math.sqrt(1.5), 2, 2 + math.sqrt(1.5)], abs=1e-7)
    assert whiten(flat(4, 4), torch.zeros(2).bool()).tolist() == [0, 0]


@pytest.mark.checklist(13)
def test_explained_variance():
    r, mask = flat(1, 2, 3, 50), torch.tensor([True, True, True, False])
    assert explained_variance(flat(1, 2, 3, 0), r, mask) == 1.0
    assert explained_variance(flat(2, 2, 2, 0), r, mask) == 0.0
    assert explained_variance(flat(3, 2, 1, 0), r, mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(flat(1, 2), flat(4, 4), torch.ones(2).bool()))


@pytest.mark.checklist(13)
def test_explained_variance_by_position():
    # Rows of 4 and 2 tokens in two halves: the critic is right in the first, at the mean in the second.
    r = flat(1, 2, 5, 7, 3, 9)
    v = flat(1, 2, 7, 7, 3, 7)
    got = explained_variance_by_position(v, r, torch.ones(6).bool(), rows(4, 2), parts=2)
    assert got == pytest.approx([1.0, 0.0])
    first_only = torch.tensor([True, True, False, False, True, False])
    assert math.isnan(explained_variance_by_position(v, r, first_only, rows(4, 2), parts=2)[1])
