"""Intervals over prompts: several responses to a prompt are no independent ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from proxlm.evaluation.intervals import Estimate, mean_of_rewards
from proxlm.seeds import Purpose, derive_seed

Counts = npt.NDArray[np.int64]
"""[n]: how often each response counts."""


def mean_over_prompts(
    values: Sequence[float],
    prompts: Sequence[Hashable],
    interval: Callable[[Sequence[float]], Estimate] = mean_of_rewards,
) -> Estimate:
    """The mean over prompts of a prompt's mean, with an interval over prompts.

    Args:
        values: Of each response.
        prompts: Which prompt each response answers.
        interval: The mean of independent values, with its interval.

    Raises ValueError for no values.
    """
    of_prompt: dict[Hashable, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        of_prompt.setdefault(prompt, []).append(value)
    return interval([math.fsum(some) / len(some) for some in of_prompt.values()])


@dataclass(frozen=True)
class Bootstrap:
    """The percentile bootstrap over prompts (Efron 1979), with the same samples each time.

    Attributes:
        prompts: Which prompt each of the n responses answers. A prompt is drawn with all its responses.
        samples: How many samples.
        seed: Of the evaluation.
    """

    prompts: Sequence[Hashable]
    samples: int
    seed: int

    def draws(self) -> Iterator[Counts]:
        """For each sample how often each response counts."""
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(self.prompts))}
        prompt_of = np.array([numbers[prompt] for prompt in self.prompts])
        generator = np.random.default_rng(derive_seed(self.seed, Purpose.RESAMPLES))
        for _ in range(self.samples):
            drawn = generator.integers(len(numbers), size=len(numbers))
            yield np.bincount(drawn, minlength=len(numbers))[prompt_of]

    def intervals(
        self, values: Mapping[str, float], statistic: Callable[[Counts], Mapping[str, float]]
    ) -> dict[str, Estimate]:
        """Each value with the 2.5% and 97.5% points of what the samples give; one prompt has no interval.

        Args:
            values: Of the responses as they are, by name.
            statistic: The same from how often each response counts. A sample in which it is NaN is left out.
        """
        if len(set(self.prompts)) < 2:
            return {name: Estimate.exactly(value) for name, value in values.items()}
        found = [statistic(counts) for counts in self.draws()]
        return {name: _between(value, [sample[name] for sample in found]) for name, value in values.items()}


def _between(value: float, sampled: Sequence[float]) -> Estimate:
    """The interval, widened to the value: that of a biased number, such as a calibration error, may not hold it."""
    given = np.array([one for one in sampled if one == one])
    if not len(given):
        return Estimate.exactly(value)
    low, high = np.quantile(given, [0.025, 0.975])
    return Estimate(value, min(value, float(low)), max(value, float(high)))
