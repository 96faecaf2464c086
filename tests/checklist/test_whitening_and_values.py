"""Section 1, items 8–10, 13 and 23: whitening, the value loss, estimators without a critic, explained variance."""

from __future__ import annotations

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from advantage_cases import F, T, flat, inputs, number, quick, ragged, rows, tokens, true, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from proxlm.rl.advantages import (
    explained_variance,
    explained_variance_by_position,
    gae,
    whiten,
)
from proxlm.rl.estimators import (
    AdvantageInputs,
    group_numbers,
    grpo_advantages,
    reinforce_advantages,
    rloo_advantages,
    varied_groups,
)
from proxlm.rl.losses import clipped_value_loss


@pytest.mark.checklist(8)
@quick
@given(st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=30), st.floats(-1e3, 1e3))
def test_whitening_gives_mean_0_and_variance_1_whatever_the_other_values(pairs, other):
    x, mask = flat(*(v for v, _ in pairs)), torch.tensor([m for _, m in pairs])
    found = whiten(x, mask)
    assert torch.equal(whiten(torch.where(mask, x, other), mask), found)
    assert not found[~mask].any()
    if mask.any():
        variance = float(x[mask].var(correction=0))
        assert float(found[mask].mean()) == pytest.approx(0, abs=1e-6)
        assert float(found[mask].var(correction=0)) == pytest.approx(variance / (variance + 1e-8), abs=1e-6)


@pytest.mark.checklist(8)
def test_whitening_of_one_value_or_none_is_0():
    assert whiten(flat(3, 9), torch.tensor([T, F])).tolist() == [0, 0]
    assert whiten(flat(3, 9), torch.tensor([F, F])).tolist() == [0, 0]
    assert whiten(flat(3, 9), torch.tensor([F, F]), shift_mean=False).tolist() == [0, 0]
    with pytest.raises(ValueError, match="differ in shape"):
        whiten(flat(3, 9), true(1))


@pytest.mark.checklist(8)
def test_whitening_divides_by_the_population_standard_deviation():
    assert whiten(flat(1, 5, 77), torch.tensor([T, T, F])).tolist() == pytest.approx([-1, 1, 0], abs=1e-7)
    assert whiten(flat(0, 2), true(2), eps=3.0).tolist() == [-0.5, 0.5]  # (x − 1) / sqrt(1 + 3)


def on_two_ranks(function, parts):
    """Run function(*part, reduce) for two parts in two threads; reduce adds what both have at the same point."""
    slots, meet = [torch.zeros(())] * 2, threading.Barrier(2, timeout=30)

    def rank(k):
        def reduce(total):
            slots[k] = total
            meet.wait()
            both = slots[0] + slots[1]
            meet.wait()
            return both

        return function(*parts[k], reduce)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


@pytest.mark.checklist(8)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=20), st.integers(0, 20), st.booleans())
def test_two_ranks_whiten_as_one(pairs, cut, shift):
    x, mask = flat(*(v for v, _ in pairs)), torch.tensor([m for _, m in pairs])
    parts = (x[:cut], mask[:cut]), (x[cut:], mask[cut:])
    found = on_two_ranks(lambda v, m, reduce: whiten(v, m, shift, reduce=reduce), parts)
    assert torch.allclose(torch.cat(found), whiten(x, mask, shift), atol=1e-6)


@pytest.mark.checklist(8)
@pytest.mark.parametrize("c", [1.1, 33.3, 100.1, 1234.567, 1e6 / 3])
def test_equal_values_whiten_to_exactly_0_in_float32(c):
    """A mean that rounds would make advantages of nothing: up to 0.9 for 1234.567 if it were taken in float32."""
    for n in range(2, 200):
        assert whiten(torch.full((n,), c), true(n)).abs().max() == 0.0


@pytest.mark.checklist(9)
@quick
@given(st.lists(st.tuples(number, st.booleans()), min_size=1, max_size=30))
def test_reward_whitening_keeps_the_mean(pairs):
    x, mask = flat(*(v for v, _ in pairs)), torch.tensor([m for _, m in pairs])
    found = whiten(x, mask, shift_mean=False)
    assert not found[~mask].any()
    if mask.any():
        assert float(found[mask].mean()) == pytest.approx(float(x[mask].mean()), abs=1e-6)
        assert torch.allclose(found[mask], whiten(x, mask)[mask] + x[mask].mean(), atol=1e-9)


@pytest.mark.checklist(10)
@pytest.mark.parametrize(
    ("v", "old", "target", "clip", "loss", "gradient"),
    [
        (-0.5, 0, -1, 0.2, 0.32, 0),  # clip(v) = −0.2 is further from R: no gradient
        (0.5, 0, 1, 0.2, 0.32, 0),
        (3, 0, 5, 1, 8, 0),
        (-3, 0, -5, 1, 8, 0),
        (0.5, 0, -1, 0.2, 1.125, 1.5),  # v is further from R: it must come back
        (-0.5, 0, 1, 0.2, 1.125, -1.5),
        (0.1, 0, 1, 0.2, 0.405, -0.9),  # within the clip: the plain square
        (3, 0, 5, 0, 2, -2),  # no clipping
        (-0.5, 0, -1, 0, 0.125, 0.5),
    ],
)
def test_value_loss_and_its_gradient_by_hand(v, old, target, clip, loss, gradient):
    value = flat(v).requires_grad_()
    found = clipped_value_loss(value, flat(old), flat(target), clip)
    found.sum().backward()
    assert found.tolist() == pytest.approx([loss])
    assert value.grad.tolist() == pytest.approx([gradient])


@pytest.mark.checklist(10)
@quick
@given(number, number, number, st.floats(0.01, 2))
def test_value_loss_is_never_less_than_half_the_square(v, old, target, clip):
    value = flat(v).requires_grad_()
    found = clipped_value_loss(value, flat(old), flat(target), clip)
    near = min(max(v, old - clip), old + clip)
    assert float(found.detach()) == pytest.approx(
        0.5 * max((v - target) ** 2, (near - target) ** 2), abs=1e-9
    )
    found.sum().backward()
    if abs(near - target) > abs(v - target) + 1e-9:
        assert float(value.grad) == 0
    elif abs(near - target) < abs(v - target) - 1e-9:
        assert float(value.grad) == pytest.approx(v - target)


def totals(*rewards):
    return [[(float(r), 0.0)] for r in rewards]


@pytest.mark.checklist(1)
@quick
@given(st.lists(tokens, min_size=1, max_size=4), unit)
def test_reinforce_is_gae_without_values_and_does_not_see_them(batch, gamma):
    r, v, mask, offsets = ragged(batch)
    found = reinforce_advantages(inputs(batch, gamma=gamma, lam=0.3))
    assert torch.equal(found.advantages, gae(r, torch.zeros_like(v), mask, offsets, gamma, 1.0)[0])
    assert torch.equal(found.advantages, found.returns)


@pytest.mark.checklist(23)
def test_rloo_and_grpo_by_hand():
    # Totals 1, 3, 8 (mean 4, Bessel variance 13) of one prompt and 2, 6 (mean 4, variance 8) of another.
    given_ = inputs([[(1, 0)], [(1, 0), (2, 0)], [(2, 0)], [(8, 0)], [(6, 0)]], [5, 5, 1, 5, 1])
    given_ = given_._replace(groups=group_numbers(given_.groups))
    assert given_.groups.tolist() == [1, 1, 0, 1, 0]
    assert rloo_advantages(given_).advantages.tolist() == [-4.5, -1.5, -1.5, -4, 6, 4]
    assert rloo_advantages(given_).returns.tolist() == [1, 3, 3, 2, 8, 6]
    plain = grpo_advantages(given_._replace(group_std=False)).advantages.tolist()
    assert plain == [-3, -1, -1, -2, 4, 2]
    by = [math.sqrt(13) + 1e-6] * 3 + [math.sqrt(8) + 1e-6, math.sqrt(13) + 1e-6, math.sqrt(8) + 1e-6]
    wanted = [a / s for a, s in zip(plain, by, strict=True)]
    assert grpo_advantages(given_).advantages.tolist() == pytest.approx(wanted, rel=1e-12)
    assert grpo_advantages(inputs(totals(3, 3), [0, 0])).advantages.tolist() == [0, 0]


@pytest.mark.checklist(23)
@pytest.mark.parametrize("n", [2, 3])
def test_rloo_is_unbiased_and_grpo_without_std_is_it_but_for_a_factor(n):
    """The mean over every draw of n of 3 answers is the gradient of the expected reward; with std it is not."""
    p, reward = flat(0.5, 0.3, 0.2), flat(1, 4, -2)
    exact = p * (reward - (p * reward).sum())  # by the logits of a softmax
    mean = {name: torch.zeros(3, dtype=torch.float64) for name in ("rloo", "plain", "std")}
    for draw in itertools.product(range(3), repeat=n):
        given_ = inputs(totals(*(reward[a] for a in draw)), [0] * n)
        found = {
            "rloo": rloo_advantages(given_),
            "plain": grpo_advantages(given_._replace(group_std=False)),
            "std": grpo_advantages(given_),
        }
        score = torch.nn.functional.one_hot(torch.tensor(draw), 3).double() - p
        for name, one in found.items():
            mean[name] += p[list(draw)].prod() * (one.advantages[:, None] * score).mean(0)
    assert torch.allclose(mean["rloo"], exact, atol=1e-12)
    assert torch.allclose(mean["plain"], exact * (n - 1) / n, atol=1e-12)
    ratio = mean["std"] / exact
    assert float(ratio.max() - ratio.min()) > 0.05


@pytest.mark.checklist(23)
@pytest.mark.parametrize("c", [0.1, 33.3, 1234.567])
@pytest.mark.parametrize("n", [3, 7, 12])
def test_equal_rewards_of_a_group_give_exactly_no_advantage_in_float32(c, n):
    batch = AdvantageInputs(
        torch.full((n,), c), torch.zeros(n), true(n), rows(*[1] * n), groups=torch.zeros(n, dtype=torch.int64)
    )
    for estimator in (grpo_advantages, rloo_advantages):
        found = estimator(batch)
        assert found.advantages.dtype == found.returns.dtype == torch.float32
        assert found.advantages.abs().max() == 0.0


@pytest.mark.checklist(23)
@pytest.mark.parametrize("estimator", [rloo_advantages, grpo_advantages])
def test_a_prompt_with_a_single_response_is_refused(estimator):
    with pytest.raises(ValueError, match="samples_per_prompt"):
        estimator(inputs(totals(1, 2, 3), [0, 1, 1]))


@pytest.mark.checklist(23)
def test_group_numbers_and_groups_that_vary():
    groups = group_numbers(torch.tensor([40, 7, 40, 9, 7, 9]))
    assert groups.tolist() == [2, 0, 2, 1, 0, 1]
    assert varied_groups(torch.tensor([1.0, -2, 1, 5, -2, 5.5]), groups).tolist() == [F, F, F, T, F, T]


@pytest.mark.checklist(13)
def test_explained_variance_of_two_elements():
    # Var(return) = 1; errors 0.5 and −0.5: variance 0.25. A constant error has none.
    assert explained_variance(flat(0.5, 1.5), flat(0, 2), true(2)) == 0.75
    assert explained_variance(flat(7, 9), flat(0, 2), true(2)) == 1.0
    assert explained_variance(flat(2, 0), flat(0, 2), true(2)) == -3.0
    assert math.isnan(explained_variance(flat(1), flat(1), true(1)))
    assert math.isnan(explained_variance(flat(1, 2), flat(4, 4), true(2)))
    # Roundings of returns, or of the values that they are sums with, are no variance.
    assert math.isnan(explained_variance(flat(1, 2), flat(-4, -4.000006), true(2)))
    assert explained_variance(flat(4, 4), flat(4, 4.00001), true(2)) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(explained_variance(flat(-100, -100), flat(4, 4.0001), true(2)))
    assert explained_variance(flat(-100, -100), flat(4, 4.0004), true(2)) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(explained_variance(flat(0, -100), flat(4, 4.0001), true(2)))
    assert math.isnan(explained_variance(flat(0, 0), flat(0, 0), true(2)))


@pytest.mark.checklist(13)
@quick
@given(st.lists(st.tuples(number, number, st.booleans()), min_size=2, max_size=20))
def test_perfect_values_explain_all_and_their_mean_nothing(triples):
    r, v = flat(*(x for x, _, _ in triples)), flat(*(x for _, x, _ in triples))
    mask = torch.tensor([m for *_, m in triples])
    if int(mask.sum()) < 2 or float(r[mask].var(correction=0)) < 1e-6:
        return
    assert explained_variance(torch.where(mask, r, v), r, mask) == 1.0
    mean = torch.full_like(r, float(r[mask].mean()))
    assert explained_variance(mean, r, mask) == pytest.approx(0.0, abs=1e-9)
    assert explained_variance(v, r, mask) == pytest.approx(explained_variance(v + 3, r, mask), abs=1e-6)


@pytest.mark.checklist(13)
def test_a_part_that_holds_roundings_alone_is_not_explained():
    v, r = flat(0, 1, 1e-9, -2e-9), flat(0, 2, 0, 3e-9)
    whole, nothing = explained_variance_by_position(v, r, true(4), torch.tensor([0, 4]), parts=2)
    assert whole == 0.75
    assert math.isnan(nothing)


@pytest.mark.checklist(13)
def test_explained_variance_by_position_where_the_second_row_decides():
    # One token and four, in halves: the first half has tokens 0, 1, 2; the second has 3 and 4, of row 1 alone.
    r, v, offsets = flat(0, 1, 2, 0, 2), flat(0, 1, 2, 0.5, 1.5), rows(1, 4)
    assert explained_variance_by_position(v, r, true(5), offsets, parts=2) == [1.0, 0.75]
    # Three tokens in quarters are in the first, second and third; the fourth has none.
    quarters = explained_variance_by_position(
        flat(0, 5, 1, 1, 5, 1), flat(0, 0, 0, 1, 2, 4), true(6), rows(3, 3)
    )
    assert quarters[:3] == [1.0, 0.0, 0.0]
    assert math.isnan(quarters[3])
