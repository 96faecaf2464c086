"""The range test, and passes of several sizes, on small objectives."""

from __future__ import annotations

import math

import pytest
import torch
from line_objective import Line

from proxlm.config import OptimiserSettings
from proxlm.distributed.ranks import ONE_PROCESS
from proxlm.train.common.memory import TokenBudget
from proxlm.train.supervised import pass_sizes
from proxlm.train.supervised.batches import TokenBatches
from proxlm.train.supervised.pass_sizes import try_sizes
from proxlm.train.supervised.range_test import moving_means, suggestion, sweep


def swept(low=1e-4, high=100.0, steps=60, seed=0):
    objective = Line(rows=64)
    batches = TokenBatches(objective.lengths, 16, seed)
    optim = OptimiserSettings(name="sgd", momentum=0.0, max_grad_norm=0.0)
    return sweep(objective, batches, optim, (low, high), steps, TokenBudget(64))


def test_the_rate_rises_exponentially_and_the_test_ends_where_the_loss_rises():
    found = swept()
    ratios = [b / a for a, b in zip(found.rates, found.rates[1:], strict=False)]
    assert ratios == pytest.approx([(100 / 1e-4) ** (1 / 59)] * len(ratios))
    assert found.rates[0] == pytest.approx(1e-4)
    assert len(found.rates) < 60
    assert found.means[-1] > 1.5 * min(found.means)
    # Gradient descent on (w x + b − y)², E x² = 1/3: the largest curvature is 2, so it diverges from rate 1 on.
    lowest = found.rates[found.means.index(min(found.means))]
    assert 0.1 < lowest < 4
    assert found.suggested == pytest.approx(lowest / 10)


def test_the_same_seed_gives_the_same_numbers_and_another_one_nearly_the_same():
    assert swept() == swept()
    assert swept(seed=1).suggested == pytest.approx(swept().suggested, rel=2)


@pytest.mark.parametrize(
    ("low", "high", "why"), [(1e-9, 1e-7, "did not fall"), (1e-3, 0.1, "still fell at the highest rate")]
)
def test_a_range_that_does_not_hold_the_answer_is_said(low, high, why):
    found = swept(low, high)
    assert found.suggested == 0
    assert why in found.why_not


def test_losses_that_are_no_numbers():
    found = suggestion([0.1, 0.2], [math.nan, math.nan])
    assert (found.suggested, found.why_not) == (0.0, "the loss was never a number")


def test_the_moving_mean_of_a_constant_is_that_constant():
    assert moving_means([3.0] * 9) == pytest.approx([3.0] * 9)


class Passes(Line):
    """Notes the rows of each pass, and runs out of memory above some tokens."""

    def __init__(self, limit=math.inf):
        super().__init__(rows=40)
        self.lengths = torch.tensor([4, 2, 1, 3] * 10)
        self.limit, self.seen = limit, []

    def gradient(self, rows, micro_batch_tokens, ranks=ONE_PROCESS):
        if int(self.lengths[rows].sum()) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append(list(rows))
        return super().gradient(rows, micro_batch_tokens)


def test_sizes_double_up_to_a_batch_on_the_longest_rows():
    objective = Passes()
    found = try_sizes(objective, 30)
    assert [(size.tokens, size.rows) for size in found] == [(4, 1), (8, 2), (16, 4), (30, 7)]
    assert all(size.fits and size.seconds > 0 for size in found)
    assert all(int(objective.lengths[rows].min()) == 4 for rows in objective.seen)
    assert all(p.grad is None for _, p in objective.trainable())


def test_it_ends_with_what_does_not_fit():
    found = try_sizes(Passes(limit=10), 64)
    assert [(size.tokens, size.fits) for size in found] == [(4, True), (8, True), (16, False)]
    assert not try_sizes(Passes(limit=1), 64)[0].fits


def test_on_a_processor_a_pass_that_would_take_the_machines_memory_is_not_tried(monkeypatch):
    """Each size takes 1 GiB more for each 4 tokens; 4 GiB are free."""
    objective = Passes()
    monkeypatch.setattr(pass_sizes, "_peak_gb", lambda: sum(map(len, objective.seen[-1:])))
    monkeypatch.setattr(pass_sizes, "_free_gb", lambda: 4.0)
    found = try_sizes(objective, 64)
    assert [(size.tokens, size.fits) for size in found] == [(4, True), (8, True), (16, True), (32, False)]


def test_other_errors_are_not_taken_for_memory():
    class Broken(Passes):
        def gradient(self, rows, micro_batch_tokens, ranks=ONE_PROCESS):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        try_sizes(Broken(), 8)
