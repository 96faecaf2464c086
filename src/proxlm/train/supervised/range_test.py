"""The learning-rate range test: the loss while the rate rises in each step, and what it suggests (Smith 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from proxlm.config import OptimiserSettings
from proxlm.train.common.memory import TokenBudget, within_memory
from proxlm.train.common.optimiser import Optimiser
from proxlm.train.supervised.batches import Batches
from proxlm.train.supervised.objective import Objective
from proxlm.types import Progress

# Weight of a loss in the moving mean, and from which multiple of the lowest mean on a sweep has diverged.
_NEW = 0.15
_DIVERGED = 1.5
# The moving mean must have fallen by this share of where it began and by so many of its own deviations; else nothing
# was learnt.
_LEAST_FALL, _DEVIATIONS = 0.01, 3.0
# The best rate is about a tenth of the one at which the loss stops falling.
_BELOW_LOWEST = 0.1


@dataclass(frozen=True)
class Sweep:
    """One range test.

    Attributes:
        rates: The learning rate of each step.
        losses: The loss of each step's batch, before the step.
        means: Their moving mean, whose start is corrected as Adam's.
        suggested: A tenth of the rate at which the moving mean is lowest; 0: the loss did not fall, or it still fell
            at the highest rate.
        why_not: Why nothing is suggested.
    """

    rates: list[float]
    losses: list[float]
    means: list[float]
    suggested: float
    why_not: str = ""


def sweep(
    objective: Objective,
    batches: Batches,
    optim: OptimiserSettings,
    rates: tuple[float, float],
    steps: int,
    budget: TokenBudget,
    progress: Progress = lambda _done, _total: None,
) -> Sweep:
    """Train with a rate that rises exponentially from step to step, until the loss rises. It changes the weights.

    Args:
        objective: The model, its data and its loss.
        batches: Draws the rows of each step.
        optim: The optimiser; its rate and schedule are not used.
        rates: Of the first and of the last step.
        steps: Of the test.
        budget: The most tokens in a pass.
        progress: Called with the steps done and their number.
    """
    low, high = rates
    rising = replace(optim, lr=low, schedule="exponential", final=high / low, warmup=0)
    optimiser = Optimiser(objective.trainable(), rising)
    losses, done = list[float](), list[float]()
    for step in range(steps):
        optimiser.hold()
        rows = batches.next()
        objective.begin_step(step)
        loss, _ = within_memory(
            budget, partial(objective.gradient, rows), objective.lengths[rows], optimiser.clear
        )
        _, rate = optimiser.step(step, steps)
        losses.append(loss)
        done.append(rate)
        progress(step + 1, steps)
        means = moving_means(losses)
        if not math.isfinite(loss) or (step > steps // 10 and means[-1] > _DIVERGED * min(means)):
            break
    optimiser.release()
    return suggestion(done, losses)


def moving_means(losses: Sequence[float]) -> list[float]:
    """Exponential means of the losses so far."""
    found, total = list[float](), 0.0
    for i, loss in enumerate(losses, 1):
        total += _NEW * (loss - total)
        found.append(total / (1 - (1 - _NEW) ** i))
    return found


def suggestion(rates: list[float], losses: list[float]) -> Sweep:
    """What the losses of a range test suggest."""
    means = moving_means(losses)
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return Sweep(rates, losses, means, 0.0, "the loss was never a number")
    lowest = means.index(min(finite))
    begun = max(3, len(losses) // 10)
    fall = means[min(begun, len(means)) - 1] - means[lowest]
    if lowest < begun or fall < max(
        _LEAST_FALL * abs(means[begun - 1]), _DEVIATIONS * _noise(losses[: lowest + 1])
    ):
        return Sweep(rates, losses, means, 0.0, "the loss did not fall at any rate; try a lower lr_low")
    if lowest == len(means) - 1:
        return Sweep(
            rates, losses, means, 0.0, "the loss still fell at the highest rate; try a higher lr_high"
        )
    return Sweep(rates, losses, means, _BELOW_LOWEST * rates[lowest])


def _noise(losses: Sequence[float]) -> float:
    """The deviation of the moving mean of losses, from how they differ from one to the next."""
    squares = [(b - a) ** 2 for a, b in pairwise(losses)]
    return math.sqrt(math.fsum(squares) / len(squares) / 2 * _NEW / (2 - _NEW))
