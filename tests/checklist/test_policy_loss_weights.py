"""Section 2, items 18 and 22: the weights of tokens, approximate KL, entropy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import (
    LOSSES,
    every_loss,
    inputs,
)

from proxlm.rl.logprobs import logprobs_and_entropy
from proxlm.rl.losses import entropy_coefficient, token_weights
from proxlm.rl.policy_losses import (
    LossInputs,
    measured,
)

MASK = torch.tensor([True, False, True, True, False, True, True, True])


OFFSETS = torch.tensor([0, 3, 4, 5, 8])  # chosen tokens per row: 2, 1, 0, 3


@pytest.mark.checklist(18)
def test_weights_by_hand():
    w = {name: token_weights(MASK, OFFSETS, name, 10).tolist() for name in ("token", "sequence", "fixed")}
    assert w["token"] == pytest.approx([1 / 6, 0, 1 / 6, 1 / 6, 0, 1 / 6, 1 / 6, 1 / 6])
    assert w["sequence"] == pytest.approx([1 / 6, 0, 1 / 6, 1 / 3, 0, 1 / 9, 1 / 9, 1 / 9])
    assert w["fixed"] == pytest.approx([1 / 30, 0, 1 / 30, 1 / 30, 0, 1 / 30, 1 / 30, 1 / 30])


@pytest.mark.checklist(18)
def test_weights_of_a_single_token():
    mask, offsets = torch.tensor([True, False]), torch.tensor([0, 2])
    assert token_weights(mask, offsets, "token", 4).tolist() == [1.0, 0.0]
    assert token_weights(mask, offsets, "sequence", 4).tolist() == [1.0, 0.0]
    assert token_weights(mask, offsets, "fixed", 4).tolist() == [0.25, 0.0]
    assert token_weights(mask, offsets, "fixed", 1).dtype == torch.float32


rows_of_masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=6)


aggregations = st.sampled_from(["token", "sequence", "fixed"])


def flat(rows):
    lengths = torch.tensor([len(row) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.tensor([c for row in rows for c in row], dtype=torch.bool), offsets


@pytest.mark.checklist(18)
@given(rows_of_masks, aggregations)
def test_weights_by_definition(rows, aggregation):
    """Against a loop over rows and tokens."""
    weights = token_weights(*flat(rows), aggregation, 7).tolist()
    tokens, sequences = sum(map(sum, rows)), sum(any(row) for row in rows)

    def parts(row):
        return {"token": tokens, "sequence": sequences * sum(row), "fixed": sequences * 7}[aggregation]

    wanted = [1 / parts(row) if chosen else 0.0 for row in rows for chosen in row]
    assert weights == pytest.approx(wanted, rel=1e-6)
    if tokens and aggregation != "fixed":
        assert sum(weights) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.checklist(18)
@given(rows_of_masks, aggregations, st.integers(1, 4), st.integers(0, 6))
def test_rows_without_an_action_are_excluded(rows, aggregation, length, at):
    """A row of which the policy chose nothing leaves the weights of the others as they are."""
    more = [*rows[:at], [False] * length, *rows[at:]]
    with_row, without = (token_weights(*flat(r), aggregation, 7) for r in (more, rows))
    start = sum(map(len, rows[:at]))
    assert torch.equal(torch.cat([with_row[:start], with_row[start + length :]]), without)
    assert not with_row[start : start + length].any()


@pytest.mark.checklist(18)
@given(rows_of_masks, rows_of_masks, aggregations)
def test_two_ranks_have_the_weights_of_one(first, second, aggregation):
    """With `reduce` adding up the counts of both ranks."""
    counts = []

    def note(total):
        counts.append(total)
        return total

    for rows in (first, second):
        token_weights(*flat(rows), aggregation, 7, reduce=note)
    assert len(counts) == 2
    both = counts[0] + counts[1]
    parts = [token_weights(*flat(r), aggregation, 7, reduce=lambda _: both) for r in (first, second)]
    assert torch.equal(torch.cat(parts), token_weights(*flat(first + second), aggregation, 7))


@pytest.mark.checklist(18)
@every_loss
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_same_gradient_for_any_split_into_whole_rows(name, aggregation):
    torch.manual_seed(0)
    rows = [[True, False, True], [True], [False], [True, True, True], [False, True]]
    mask, offsets = flat(rows)
    new, old, advantages = (torch.randn(len(mask), dtype=torch.float64) * s for s in (0.5, 0.5, 1.0))
    weights = token_weights(mask, offsets, aggregation, 7).double()

    def gradient(cuts):
        logprobs = new.clone().requires_grad_()
        for a, b in itertools.pairwise(cuts):
            at = slice(int(offsets[a]), int(offsets[b]))
            part = LossInputs(
                logprobs[at], old[at], advantages[at], mask[at], offsets[a : b + 1] - offsets[a]
            )
            (weights[at] * LOSSES[name](part).loss).sum().backward()
        return logprobs.grad

    whole = gradient([0, 5])
    assert not whole[~mask].any()
    for cuts in ([0, 1, 2, 3, 4, 5], [0, 2, 5], [0, 3, 4, 5], [0, 4, 5]):
        assert torch.allclose(gradient(cuts), whole, rtol=1e-12, atol=0)


@pytest.mark.checklist(22)
def test_approx_kl_is_half_the_squared_log_ratio_even_beyond_the_clamp():
    given_inputs = inputs([30.0, -0.4], [0.0, 0.2], [1.0, 1.0])
    terms = measured(given_inputs, given_inputs.logprobs)
    assert terms.approx_kl.tolist() == pytest.approx([450.0, 0.18])
    assert terms.ratio.tolist() == pytest.approx([math.exp(20), math.exp(-0.6)])
    assert terms.clipped.tolist() == [False, False]
    flags = torch.tensor([True, False])
    assert torch.equal(measured(given_inputs, given_inputs.logprobs, flags).clipped, flags)


@pytest.mark.checklist(22)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_entropy_of_the_uniform_policy_is_log_v(size, temperature):
    logits = torch.full((3, size), 1.7, dtype=torch.float64, requires_grad=True)
    logprobs, entropy = logprobs_and_entropy(logits, torch.zeros(3, dtype=torch.int64), temperature)
    assert entropy.tolist() == pytest.approx([math.log(size)] * 3)
    assert logprobs.tolist() == pytest.approx([-math.log(size)] * 3)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert float(gradient.abs().max()) < 1e-12  # the largest there is


@pytest.mark.checklist(22)
def test_entropy_coefficient_is_a_thermostat():
    assert entropy_coefficient(0.01, 5.0, 0.0) == 0.01  # no floor: always
    assert entropy_coefficient(0.01, 0.0, 0.0) == 0.01
    assert entropy_coefficient(0.01, 0.49, 0.5) == 0.01
    assert entropy_coefficient(0.01, 0.5, 0.5) == 0.0  # at the floor it rests
    assert entropy_coefficient(0.01, 0.51, 0.5) == 0.0
    assert entropy_coefficient(0.0, 0.1, 0.5) == 0.0
