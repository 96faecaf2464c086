"""Advantage estimators by hand: groups, turns, decoupled and length-adaptive λ."""

from __future__ import annotations

import pytest
import torch

from proxlm.rl.advantages import gae, length_adaptive_lambda, turn_gae, turn_starts, whiten
from proxlm.rl.estimators import (
    AdvantageInputs,
    gae_advantages,
    group_numbers,
    grpo_advantages,
    reinforce_advantages,
    rloo_advantages,
    varied_groups,
)

F, T = False, True


def inputs(rewards, lengths, groups, values=None, mask=None, **more):
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return AdvantageInputs(
        rewards=rewards,
        values=torch.zeros_like(rewards) if values is None else torch.tensor(values, dtype=torch.float64),
        action_mask=torch.ones(len(rewards), dtype=torch.bool) if mask is None else torch.tensor(mask),
        offsets=offsets,
        groups=torch.tensor(groups),
        **more,
    )


@pytest.mark.checklist(23)
def test_rloo_by_hand():
    """Totals 1, 3, 5 in one group and 2, 2 in another: each less the mean of the others."""
    given = inputs([1, 1, 2, 5, 2, 2], [1, 2, 1, 1, 1], [0, 0, 0, 1, 1])
    found = rloo_advantages(given)
    assert found.advantages.tolist() == [1 - 4, 3 - 3, 3 - 3, 5 - 2, 0, 0]
    assert found.returns.tolist() == [1, 3, 3, 5, 2, 2]


@pytest.mark.checklist(23)
def test_grpo_by_hand_with_and_without_std():
    given = inputs([1, 1, 2, 5], [1, 2, 1], [0, 0, 0])
    plain = grpo_advantages(given._replace(group_std=False)).advantages
    assert plain.tolist() == [-2, 0, 0, 2]
    assert grpo_advantages(given).advantages.tolist() == pytest.approx([-1, 0, 0, 1], abs=1e-5)  # std 2
    assert torch.allclose(plain * 3 / 2, rloo_advantages(given).advantages)


@pytest.mark.checklist(23)
def test_tokens_not_chosen_have_no_group_advantage():
    found = rloo_advantages(inputs([1, 0, 4], [2, 1], [0, 0], mask=[T, F, T]))
    assert found.advantages.tolist() == [-3, 0, 3]


@pytest.mark.checklist(23)
@pytest.mark.parametrize("estimator", [rloo_advantages, grpo_advantages])
def test_a_single_response_is_refused(estimator):
    with pytest.raises(ValueError, match="samples_per_prompt"):
        estimator(inputs([1, 2, 3], [1, 1, 1], [0, 0, 1]))


@pytest.mark.checklist(23)
def test_reinforce_is_the_discounted_return():
    found = reinforce_advantages(inputs([1, 2, 4, 8], [3, 1], [0, 1], values=[9, 9, 9, 9], gamma=0.5))
    assert found.advantages.tolist() == [1 + 1 + 1, 2 + 2, 4, 8]
    assert torch.equal(found.advantages, found.returns)


def test_group_numbers_and_varied_groups():
    groups = group_numbers(torch.tensor([7, 3, 7, 9, 3]))
    assert groups.tolist() == [1, 0, 1, 2, 0]
    assert varied_groups(torch.tensor([1.0, 2, 1, 5, 3]), groups).tolist() == [F, T, F, F, T]


@pytest.mark.checklist(5)
def test_decoupled_lambda_changes_the_returns_alone():
    given = inputs([0, 0, 1], [3], [0], values=[0.5, 0.25, 0.125], lam=0.5)
    same, split = gae_advantages(given), gae_advantages(given._replace(critic_lam=1.0))
    assert torch.equal(same.advantages, split.advantages)
    assert split.returns.tolist() == pytest.approx([1, 1, 1])
    assert torch.equal(gae_advantages(given._replace(critic_lam=0.5)).returns, same.returns)
    assert same.returns.tolist() != split.returns.tolist()


@pytest.mark.checklist(6)
def test_length_adaptive_lambda():
    lam = length_adaptive_lambda(torch.tensor([200, 20, 10, 0]), 0.05)
    assert lam.tolist() == pytest.approx([0.9, 0.0, 0.0, 0.0])
    assert length_adaptive_lambda(torch.tensor([40]), 0.05).tolist() == pytest.approx([0.5])


@pytest.mark.checklist(6)
def test_a_lambda_per_row_is_each_row_alone():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    mask, offsets = torch.ones(7, dtype=torch.bool), torch.tensor([0, 4, 7])
    both = gae(rewards, values, mask, offsets, 0.9, torch.tensor([0.3, 0.8]))[0]
    for row, lam in ((slice(0, 4), 0.3), (slice(4, 7), 0.8)):
        n = row.stop - row.start
        alone = gae(rewards[row], values[row], mask[row], torch.tensor([0, n]), 0.9, torch.tensor([lam]))[0]
        assert torch.allclose(both[row], alone)


@pytest.mark.checklist(7)
def test_turn_gae_by_hand():
    """Turns of 2 and 1 tokens with an observation between; the reward on it belongs to the first turn."""
    mask = torch.tensor([T, T, F, T])
    rewards, values = torch.tensor([1.0, 2, 4, 8]), torch.tensor([0.5, 7, 7, 0.25])
    assert turn_starts(mask, torch.tensor([0, 4])).tolist() == [T, F, F, T]
    advantages, returns = turn_gae(rewards, values, mask, torch.tensor([0, 4]), 0.5, 0.5)
    last = 8 - 0.25
    first = (1 + 2 + 4) + 0.5 * 0.25 - 0.5 + 0.25 * last
    assert advantages.tolist() == pytest.approx([first, first, 0, last])
    assert returns.tolist() == pytest.approx([first + 0.5, first + 0.5, 7, 8])


@pytest.mark.checklist(7)
def test_one_token_a_turn_is_token_gae():
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    mask = torch.tensor([T, F, T, F, T, F, T, F, T])
    given = rewards, values, mask, torch.tensor([0, 5, 9]), 0.9, 0.7
    for a, b in zip(turn_gae(*given), gae(*given), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.checklist(7)
def test_turns_end_with_their_row():
    mask = torch.ones(3, dtype=torch.bool)
    assert turn_starts(mask, torch.tensor([0, 2, 3])).tolist() == [T, F, T]
    nothing = torch.zeros(3, dtype=torch.bool)
    assert turn_gae(torch.ones(3), torch.ones(3), nothing, torch.tensor([0, 3]), 1.0, 1.0)[0].tolist() == [
        0,
        0,
        0,
    ]


@pytest.mark.checklist(3)
@pytest.mark.parametrize("seed", range(5))
def test_inserted_tokens_leave_the_advantages_of_many_turns(seed):
    """λ = 0.9: spans of other lengths and values between the same decisions."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    plain = gae(rewards, values, torch.ones(12, dtype=torch.bool), torch.tensor([0, 12]), 0.95, 0.9)[0]
    r, v, m = [], [], []
    for i in range(12):
        r.append(float(rewards[i]))
        v.append(float(values[i]))
        m.append(True)
        for _ in range(int(torch.randint(0, 4, (1,), generator=generator))):
            r.append(0.0)
            v.append(99.0)
            m.append(False)
    mask = torch.tensor(m)
    longer = gae(
        torch.tensor(r).double(), torch.tensor(v).double(), mask, torch.tensor([0, len(m)]), 0.95, 0.9
    )[0]
    assert torch.allclose(longer[mask], plain, atol=1e-6)


@pytest.mark.checklist(8)
def test_two_ranks_whiten_as_one():
    values, mask = torch.arange(7.0) ** 2, torch.tensor([T, T, F, T, T, T, F])
    whole = whiten(values, mask)
    halves = (values[:3], mask[:3]), (values[3:], mask[3:])
    # Each rank's sums in the order asked for; `reduce` then gives the sum over both.
    count = mask.sum()
    mean = values[mask].sum() / count
    totals = iter([count, values[mask].sum(), (values[mask] - mean).square().sum()] * 2)
    parts = [whiten(v, m, reduce=lambda _: next(totals)) for v, m in halves]
    assert torch.allclose(torch.cat(parts), whole)
    assert whiten(torch.tensor([3.0, 9]), torch.tensor([T, F])).tolist() == [0, 0]


def test_defaults_of_the_inputs():
    given = inputs([1], [1], [0])
    assert given[5:] == (None, 1.0, 0.95, None, False, True)
