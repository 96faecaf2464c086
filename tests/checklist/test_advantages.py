"""Section 1, items 1–7: advantages and returns as pure functions."""

from __future__ import annotations

import pytest
import torch
from advantage_cases import F, T, flat, inputs, number, quick, ragged, rows, token, tokens, true, unit
from hypothesis import given
from hypothesis import strategies as st

from proxlm.rl.advantages import (
    gae,
    length_adaptive_lambda,
    turn_gae,
    turn_starts,
    whiten,
)
from proxlm.rl.estimators import (
    AdvantageInputs,
    gae_advantages,
)


def deltas(one, gamma, after=0.0):
    values = [v for _, v in one] + [after]
    return [r + gamma * values[t + 1] - values[t] for t, (r, _) in enumerate(one)]


def summed(one, gamma, lam, after=0.0):
    """A_t = Σ_s (γλ)^{s−t} δ_s, every pair of tokens: O(T²)."""
    d = deltas(one, gamma, after)
    return [sum((gamma * lam) ** (s - t) * d[s] for s in range(t, len(d))) for t in range(len(d))]


def scanned(one, gamma, lam, after=0.0):
    """The same by doubling, as an associative scan would: after k rounds a token has 2^k terms."""
    found, step = flat(*deltas(one, gamma, after)), 1
    while step < len(found):
        further = torch.cat([found[step:], torch.zeros(step, dtype=torch.float64)])
        found, step = found + (gamma * lam) ** step * further, 2 * step
    return found.tolist()


@pytest.mark.checklist(1)
@quick
@given(st.lists(tokens, min_size=1, max_size=5), unit, unit)
def test_the_loop_is_the_scan_is_the_quadratic_sum(batch, gamma, lam):
    after = [0.5 * b - 1 for b in range(len(batch))]
    advantages, returns = gae(*ragged(batch), gamma, lam, flat(*after))
    for reference in (summed, scanned):
        wanted = [a for one, v in zip(batch, after, strict=True) for a in reference(one, gamma, lam, v)]
        assert advantages.tolist() == pytest.approx(wanted, abs=1e-10)
    assert torch.equal(returns, advantages + ragged(batch)[1])


@pytest.mark.checklist(1)
@quick
@given(tokens, unit)
def test_lambda_0_is_the_temporal_difference(one, gamma):
    assert gae(*ragged([one]), gamma, 0.0)[0].tolist() == pytest.approx(deltas(one, gamma), abs=1e-12)


@pytest.mark.checklist(1)
@quick
@given(tokens, unit)
def test_lambda_1_is_the_return_less_the_value(one, gamma):
    future = [sum(gamma ** (s - t) * one[s][0] for s in range(t, len(one))) for t in range(len(one))]
    advantages, returns = gae(*ragged([one]), gamma, 1.0)
    assert returns.tolist() == pytest.approx(future, abs=1e-10)
    assert advantages.tolist() == pytest.approx(
        [g - v for g, (_, v) in zip(future, one, strict=True)], abs=1e-10
    )


@pytest.mark.checklist(1)
def test_the_defaults_of_the_estimators():
    given_ = AdvantageInputs(flat(1), flat(0), true(1), rows(1), torch.tensor([0]))
    assert (given_.gamma, given_.lam, given_.critic_lam) == (1.0, 0.95, None)
    assert (given_.bootstrap, given_.turns, given_.group_std) == (None, False, True)


@pytest.mark.checklist(1)
def test_an_empty_row_beside_a_single_token():
    advantages, returns = gae(flat(1), flat(0.5), true(1), torch.tensor([0, 0, 1]), 1.0, 0.95)
    assert (advantages.tolist(), returns.tolist()) == ([0.5], [1.0])
    advantages, returns = gae(flat(1), flat(0.5), true(1), torch.tensor([0, 1, 1]), 1.0, 0.95)
    assert (advantages.tolist(), returns.tolist()) == ([0.5], [1.0])


@pytest.mark.checklist(1)
def test_no_token_and_no_row_at_all():
    for offsets in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        for estimate in (gae, turn_gae):
            assert estimate(flat(), flat(), true(0), offsets, 1.0, 0.95)[0].tolist() == []


@pytest.mark.checklist(1)
@pytest.mark.parametrize("estimate", [gae, turn_gae])
def test_results_have_the_dtype_of_the_values(estimate):
    rewards, lam = flat(1.0, 2.0, 3.0), flat(0.9, 0.8)
    found = estimate(rewards, torch.zeros(3), true(3), rows(1, 2), 1.0, lam)
    assert [t.dtype for t in found] == [torch.float32] * 2
    exact = estimate(rewards, flat(0.0, 0.0, 0.0), true(3), rows(1, 2), 1.0, lam)
    assert all(torch.allclose(a.double(), b) for a, b in zip(found, exact, strict=True))


@pytest.mark.checklist(2)
def test_returns_are_raw_advantages_plus_values_and_whitening_leaves_them_alone():
    # δ = 0 + 0.25 − 0.5, 1 − 0.25; λ = 0.5: A = −0.25 + 0.5 · 0.75, 0.75
    advantages, returns = gae(flat(0, 1), flat(0.5, 0.25), true(2), rows(2), 1.0, 0.5)
    assert advantages.tolist() == [0.125, 0.75]
    assert whiten(advantages, true(2)).tolist() == pytest.approx([-1, 1], abs=1e-6)
    assert returns.tolist() == [0.625, 1.0]
    assert advantages.tolist() == [0.125, 0.75]


turn = st.lists(token, min_size=1, max_size=3)


observation = st.lists(number, min_size=0, max_size=4)


conversation = st.lists(st.tuples(observation, turn), min_size=1, max_size=8)


@pytest.mark.checklist(3)
@quick
@given(
    st.lists(st.tuples(conversation, observation), min_size=1, max_size=3), st.floats(0.5, 1), st.booleans()
)
def test_inserting_masked_out_tokens_anywhere_leaves_the_advantages(batch, gamma, cut):
    """λ = 0.9, many turns, an observation before each and after the last, with values of its own and reward 0."""
    plain, longer, mask = [], [], []
    for turns, end in batch:
        plain.append([t for _, chosen in turns for t in chosen])
        one, m = [], []
        for seen, chosen in turns:
            one += [(0.0, v) for v in seen] + chosen
            m += [F] * len(seen) + [T] * len(chosen)
        longer.append(one + [(0.0, v) for v in end])
        mask += m + [F] * len(end)
    chosen = torch.tensor(mask)
    after = flat(*range(1, len(batch) + 1)) if cut else None
    wanted = gae(*ragged(plain), gamma, 0.9, after)
    r, v, _, offsets = ragged(longer)
    advantages, returns = gae(r, v, chosen, offsets, gamma, 0.9, after)
    assert torch.equal(advantages[chosen], wanted[0])
    assert torch.equal(returns[chosen], wanted[1])
    assert not advantages[~chosen].any()
    assert torch.equal(returns[~chosen], v[~chosen])


@pytest.mark.checklist(3)
def test_a_reward_on_a_masked_out_token_is_the_choice_before_its():
    r, v, mask = flat(1, 4, 8), flat(0.5, 9, 0.25), torch.tensor([T, F, T])
    advantages, returns = gae(r, v, mask, rows(3), 1.0, 0.9)
    last = 8 - 0.25
    assert advantages.tolist() == pytest.approx([5 + 0.25 - 0.5 + 0.9 * last, 0, last])
    assert returns.tolist() == pytest.approx([4.75 + 0.9 * last + 0.5, 9, 8])


@pytest.mark.checklist(4)
def test_three_steps_by_hand_ended_and_cut():
    # V = 1, 2, 3; reward 10 at the end; γ = 0.5, λ = 0.5, so γλ = 0.25.
    given_ = flat(0, 0, 10, 0, 0, 10), flat(1, 2, 3, 1, 2, 3), true(6), rows(3, 3), 0.5, 0.5
    # Ended: δ = 0, −0.5, 7. Cut with V = 4 to come: δ2 = 10 + 0.5 · 4 − 3 = 9.
    advantages, returns = gae(*given_, flat(0, 4))
    assert advantages.tolist() == [0.25 * 1.25, -0.5 + 0.25 * 7, 7, 0.25 * 1.75, -0.5 + 0.25 * 9, 9]
    assert returns.tolist() == [1.3125, 3.25, 10, 1.4375, 3.75, 12]
    terminal = gae(*given_)[0]
    assert terminal.tolist() == advantages[:3].tolist() * 2


@pytest.mark.checklist(5)
@quick
@given(st.lists(tokens, min_size=1, max_size=4), unit, unit, unit, st.booleans())
def test_the_critics_lambda_is_its_returns_alone_and_equal_lambdas_are_gae(
    batch, gamma, lam, critic_lam, turns
):
    after = flat(*range(len(batch)))
    given_ = inputs(batch, gamma=gamma, lam=lam, bootstrap=after, turns=turns)
    estimate = turn_gae if turns else gae
    plain = estimate(*ragged(batch), gamma, lam, after)
    for same in (gae_advantages(given_), gae_advantages(given_._replace(critic_lam=lam))):
        assert torch.equal(same.advantages, plain[0])
        assert torch.equal(same.returns, plain[1])
    split = gae_advantages(given_._replace(critic_lam=critic_lam))
    assert torch.equal(split.advantages, plain[0])
    assert torch.equal(split.returns, estimate(*ragged(batch), gamma, critic_lam, after)[1])


@pytest.mark.checklist(5)
def test_a_critic_with_lambda_0_is_not_one_without_its_own():
    given_ = inputs([[(0, 0.5), (1, 0.25)]], lam=1.0, critic_lam=0.0)
    found = gae_advantages(given_)
    assert found.advantages.tolist() == [0.5, 0.75]
    assert found.returns.tolist() == [0.25, 1.0]  # r + V of the next


@pytest.mark.checklist(6)
def test_length_adaptive_lambda_by_hand():
    found = length_adaptive_lambda(torch.tensor([200, 400, 40, 25, 20, 10, 1, 0]), 0.05)
    assert found.tolist() == pytest.approx([0.9, 0.95, 0.5, 0.2, 0, 0, 0, 0], abs=1e-6)
    assert found.dtype == torch.float32
    assert float(length_adaptive_lambda(torch.tensor([2]), 1.0)) == 0.5


@pytest.mark.checklist(6)
@quick
@given(st.lists(st.tuples(tokens, unit), min_size=1, max_size=5), unit)
def test_a_lambda_for_each_row_is_each_row_alone(pairs, gamma):
    batch, lams = [one for one, _ in pairs], [lam for _, lam in pairs]
    for estimate in (gae, turn_gae):
        together = estimate(*ragged(batch), gamma, flat(*lams))[0]
        alone = [estimate(*ragged([one]), gamma, lam)[0] for one, lam in pairs]
        assert torch.allclose(together, torch.cat(alone), atol=1e-12)


@pytest.mark.checklist(7)
@quick
@given(st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=3), unit, unit)
def test_one_token_a_turn_is_token_gae(batch, gamma, lam):
    """A token nobody chose after each one chosen; its reward is the choice's."""
    r, v, _, offsets = ragged(batch)
    place = torch.cat([torch.arange(len(one)) for one in batch])
    for mask in (place % 2 == 0, place % 2 == 1):
        for a, b in zip(
            turn_gae(r, v, mask, offsets, gamma, lam), gae(r, v, mask, offsets, gamma, lam), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.checklist(7)
@quick
@given(conversation, unit, unit)
def test_turns_are_steps_whose_reward_is_the_sum_of_their_tokens(turns, gamma, lam):
    one = [t for seen, chosen in turns for t in [*((0.5, v) for v in seen or [3.0]), *chosen]]
    mask = [m for seen, chosen in turns for m in [F] * len(seen or [3.0]) + [T] * len(chosen)]
    steps = [[sum(r for r, _ in chosen), chosen[0][1]] for _, chosen in turns]
    for k, (seen, _) in enumerate(turns[1:]):
        steps[k][0] += 0.5 * len(seen or [3.0])  # what follows a turn is its reward
    wanted = summed(steps, gamma, lam)
    r, v, _, offsets = ragged([one])
    advantages, returns = turn_gae(r, v, torch.tensor(mask), offsets, gamma, lam)
    spread = [a for a, (_, chosen) in zip(wanted, turns, strict=True) for _ in chosen]
    assert advantages[torch.tensor(mask)].tolist() == pytest.approx(spread, abs=1e-9)
    first = [a + v for a, (_, v), (_, chosen) in zip(wanted, steps, turns, strict=True) for _ in chosen]
    assert returns[torch.tensor(mask)].tolist() == pytest.approx(first, abs=1e-9)
    assert int(turn_starts(torch.tensor(mask), offsets).sum()) == len(turns)


@pytest.mark.checklist(7)
@quick
@given(st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=3), unit)
def test_a_single_turn_is_a_bandit(batch, lam):
    wanted = [sum(r for r, _ in one) - one[0][1] for one in batch for _ in one]
    assert turn_gae(*ragged(batch), 0.9, lam)[0].tolist() == pytest.approx(wanted, abs=1e-9)
