"""Section 3, items 27–29: moments, scaling, clips, missing EOS, overlong responses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import strategies as st
from reward_cases import F64, given, normal, ragged, seeds

from proxlm.rl.losses import clipped_policy_loss, token_weights
from proxlm.rl.ragged import segment_sum
from proxlm.rl.running_statistics import RunningStatistics, clip_advantages, scale_scores, with_values
from proxlm.rl.shaping import apply_missing_eos, overlong_penalty, response_rewards

numbers = st.floats(-100, 100, allow_nan=False, width=32)


@st.composite
def numbers_and_cuts(draw):
    values = draw(st.lists(numbers, max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=6)))
    return values, cuts


@pytest.mark.checklist(28)
@given(numbers_and_cuts())
def test_moments_do_not_depend_on_the_split(case):
    values, cuts = case
    whole = with_values(RunningStatistics(), torch.tensor(values))
    moments = RunningStatistics()
    for start, end in itertools.pairwise([0, *cuts, len(values)]):
        moments = with_values(moments, torch.tensor(values[start:end]))
    assert moments.n == whole.n == len(values)
    assert moments.mean == pytest.approx(whole.mean, abs=1e-9)
    assert moments.squares == pytest.approx(whole.squares, rel=1e-9, abs=1e-7)
    if values:
        wanted = torch.tensor(values, dtype=torch.float32).double()
        assert whole.mean == pytest.approx(float(wanted.mean()), abs=1e-9)
        spread = float(wanted.std(correction=0))
        assert whole.std == pytest.approx(spread if spread > 0 and len(values) > 1 else 1.0, rel=1e-6)


@pytest.mark.checklist(28)
def test_moments_by_hand():
    moments = with_values(with_values(RunningStatistics(), torch.tensor([1.0, 2.0])), torch.tensor([6.0]))
    assert moments == RunningStatistics(3.0, 3.0, 14.0)
    assert moments.std == pytest.approx(math.sqrt(14 / 3))


@pytest.mark.checklist(28)
@pytest.mark.parametrize("values", [[], [5.0], [0.1] * 7, [0.0, 0.0]])
def test_std_is_1_of_fewer_than_two_values_and_where_they_do_not_vary(values):
    moments = with_values(RunningStatistics(), torch.tensor(values))
    assert moments.n == len(values)
    assert moments.std == 1.0
    exact = with_values(RunningStatistics(), torch.tensor(values, dtype=torch.float64))  # whose mean rounds
    assert exact.std == 1.0
    assert with_values(moments, torch.zeros(0)) == moments


@pytest.mark.checklist(28)
def test_std_of_two_values():
    assert with_values(RunningStatistics(), torch.tensor([1.0, 3.0])).std == 1.0
    assert with_values(RunningStatistics(), torch.tensor([1.0, 5.0])).std == 2.0


@pytest.mark.checklist(27)
@given(st.lists(numbers, min_size=2, max_size=30).filter(lambda v: max(v) - min(v) > 1e-2))
def test_scores_scaled_by_their_own_moments_have_mean_0_and_std_1(values):
    scores = torch.tensor(values, dtype=F64)
    scaled, none = scale_scores(
        scores, None, torch.zeros(len(values), dtype=F64), with_values(RunningStatistics(), scores), 0.0
    )
    assert none is None
    assert float(scaled.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(scaled.std(correction=0)) == pytest.approx(1.0, abs=1e-6)


HALF = RunningStatistics(n=4.0, mean=1.0, squares=16.0)  # std 2


@pytest.mark.checklist(27)
@pytest.mark.checklist(28)
def test_scaling_by_hand():
    scores = torch.tensor([1.0, 5.0, -9.0])
    assert scale_scores(scores, None, torch.zeros(3), HALF, 0.0)[0].tolist() == [0.0, 2.0, -5.0]
    assert scale_scores(scores, None, torch.zeros(3), HALF, 1.5)[0].tolist() == [0.0, 1.5, -1.5]


@pytest.mark.checklist(28)
def test_scaling_with_rewards_of_tokens_by_hand():
    """Whole rewards 3 and 5 → 1 and 2; tokens are divided by 2, and the score bears the mean and the clip."""
    scores, per_token, offsets = (
        torch.tensor([1.0, 3.0]),
        torch.tensor([1.0, 1.0, 2.0]),
        torch.tensor([0, 2, 3]),
    )
    sums = segment_sum(per_token, offsets)
    total, tokens = scale_scores(scores, per_token, sums, HALF, 0.0)
    assert (total.tolist(), tokens.tolist()) == ([0.0, 1.0], [0.5, 0.5, 1.0])
    total, tokens = scale_scores(scores, per_token, sums, HALF, 1.0)
    assert (total.tolist(), tokens.tolist()) == ([0.0, 0.0], [0.5, 0.5, 1.0])


@pytest.mark.checklist(28)
@given(ragged(), seeds, st.sampled_from([0.0, 0.5, 2.0]))
def test_the_whole_of_a_scaled_response_is_the_clipped_z_score(shape, seed, limit):
    mask, offsets = shape
    scores, per_token = 5 * normal(seed, len(offsets) - 1), normal(seed + 1, len(mask))
    before = response_rewards(scores, per_token, offsets)
    moments = RunningStatistics(3.0, 0.7, 12.0)
    total, tokens = scale_scores(scores, per_token, segment_sum(per_token, offsets), moments, limit)
    z = (before - 0.7) / 2.0
    wanted = z.clamp(-limit, limit) if limit else z
    assert torch.allclose(response_rewards(total, tokens, offsets), wanted, atol=1e-9)


@pytest.mark.checklist(28)
def test_advantages_are_clipped_on_both_sides_or_left_alone():
    advantages = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    assert clip_advantages(advantages, 1.0).tolist() == [-1.0, -0.5, 0.5, 1.0]
    assert clip_advantages(advantages, 0.25).tolist() == [-0.25, -0.25, 0.25, 0.25]
    assert torch.equal(clip_advantages(advantages, 0.0), advantages)


def gradient_shares(advantages):
    """Each token's share of the summed |∂ loss / ∂ log π| at ratio 1."""
    old = torch.full_like(advantages, -1.0)
    logprobs = old.clone().requires_grad_()
    mask = torch.ones(len(advantages)).bool()
    weights = token_weights(mask, torch.tensor([0, len(advantages)]), "token", len(advantages))
    loss = (weights * clipped_policy_loss(logprobs, old, advantages).loss).sum()
    size = torch.autograd.grad(loss, logprobs)[0].abs()
    return size / size.sum()


@pytest.mark.checklist(28)
def test_an_outliers_share_of_the_gradient_is_bounded_by_the_advantage_clip():
    advantages = torch.cat([torch.tensor([1000.0]), torch.tensor([1.0, -1.0]).repeat(10)])
    assert float(gradient_shares(advantages)[0]) == pytest.approx(1000 / 1020, rel=1e-5)
    assert float(gradient_shares(clip_advantages(advantages, 5.0))[0]) == pytest.approx(5 / 25, rel=1e-5)


@pytest.mark.checklist(28)
@given(st.floats(1, 1e6), st.integers(2, 30), st.floats(0.5, 10))
def test_an_outliers_share_is_at_most_the_clip_over_what_all_have(outlier, count, limit):
    advantages = torch.tensor([outlier] + [0.5] * (count - 1), dtype=torch.float32)
    share = float(gradient_shares(clip_advantages(advantages, limit))[0])
    assert share <= limit / (limit + 0.5 * (count - 1)) + 1e-5


@pytest.mark.checklist(29)
@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("ignore", [2.0, 3.0, -4.0]), ("subtract", [2.0, 2.5, -4.5]), ("replace", [2.0, -0.5, -0.5])],
)
def test_missing_eos_by_hand(mode, wanted):
    ended = torch.tensor([True, False, False])
    assert apply_missing_eos(torch.tensor([2.0, 3.0, -4.0]), ended, mode, 0.5).tolist() == wanted


@pytest.mark.checklist(29)
def test_missing_eos_refuses_other_modes_and_shapes():
    with pytest.raises(ValueError, match='got "cut"'):
        apply_missing_eos(torch.zeros(1), torch.ones(1).bool(), "cut", 1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        apply_missing_eos(torch.zeros(1), torch.ones(2).bool(), "ignore", 1.0)


@pytest.mark.checklist(29)
def test_overlong_penalty_by_hand():
    """Limit 20, buffer 8: nothing to 12, half at 16, all from 20 on."""
    lengths = torch.tensor([0, 1, 12, 13, 16, 19, 20, 21, 100])
    wanted = [0.0, 0.0, 0.0, 0.375, 1.5, 2.625, 3.0, 3.0, 3.0]
    assert overlong_penalty(lengths, 20, 8, 3.0).tolist() == wanted
    assert overlong_penalty(lengths, 20, 0, 3.0).tolist() == [0.0] * 9
    assert overlong_penalty(torch.tensor([0, 10, 20]), 20, 20, 1.0).tolist() == [0.0, 0.5, 1.0]
    assert overlong_penalty(lengths, 20, 8, 0.0).tolist() == [0.0] * 9


@pytest.mark.checklist(29)
@given(st.integers(1, 50), st.integers(0, 50), st.floats(0, 10))
def test_overlong_penalty_rises_with_length_and_stays_within_bounds(limit, buffer, penalty):
    found = overlong_penalty(torch.arange(limit + 5), limit, min(buffer, limit), penalty)
    assert bool((found[1:] >= found[:-1]).all())
    assert float(found.min()) == 0.0
    assert float(found.max()) == pytest.approx(penalty if min(buffer, limit) else 0.0, abs=1e-5)
