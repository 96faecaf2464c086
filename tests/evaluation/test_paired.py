"""Paired tests and intervals: exact ones against an enumeration, the others by how often they are right."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from proxlm.evaluation import paired
from proxlm.evaluation.paired import (
    assignment_p,
    bootstrap_difference,
    holm,
    seeds_and_prompts,
    sign_flip_p,
    welch_difference,
)


def binomial_bounds(share: float, trials: int, deviations: float = 3.5) -> tuple[float, float]:
    """Between which an observed share lies, but for once in 2,000 times."""
    half = deviations * math.sqrt(share * (1 - share) / trials)
    return share - half, share + half


def enumerated_signs(values: list[float]) -> float:
    """By the definition, every sign of every value, in whole numbers so that no sum is rounded."""
    whole = [round(value * 1000) for value in values]
    sums = [
        abs(sum(s * v for s, v in zip(signs, whole, strict=True)))
        for signs in product((-1, 1), repeat=len(whole))
    ]
    return sum(total >= abs(sum(whole)) for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(12))
def test_the_sign_test_is_exact_for_few_prompts(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(-900, 1200, generator.integers(1, 12)) / 1000
    values[generator.random(len(values)) < 0.2] = 0.0  # ties change nothing
    assert sign_flip_p(values) == pytest.approx(enumerated_signs(values.tolist()), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_of_zeros_and_ones_it_is_mcnemars_exact_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    leads = generator.integers(-1, 2, 60)
    up, down = int((leads > 0).sum()), int((leads < 0).sum())
    fewer = sum(math.comb(up + down, k) for k in range(min(up, down) + 1)) / 2 ** (up + down)
    assert sign_flip_p(leads) == pytest.approx(min(1.0, 2 * fewer), abs=1e-12)
    assert sign_flip_p(leads[:14]) == pytest.approx(enumerated_signs(leads[:14].tolist()), abs=1e-12)


def test_drawn_signs_come_near_the_exact_test(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(0.4, 1.0, 16)
    exact = sign_flip_p(values)
    monkeypatch.setattr(paired, "EXACT_SIGNS", 3)
    drawn = [sign_flip_p(values, seed) for seed in range(5)]
    low, high = binomial_bounds(exact, paired.DRAWN)
    assert all(low - 1 / paired.DRAWN < p < high + 1 / paired.DRAWN for p in drawn)
    assert len(set(drawn)) > 1
    assert sign_flip_p(values, 1) == drawn[1]
    assert sign_flip_p([100.0 + i for i in range(40)]) == 1 / (1 + paired.DRAWN)  # never 0


def test_scipy_finds_the_same() -> None:
    stats = pytest.importorskip("scipy.stats", reason="a reference, where it is installed")

    def mean_lead(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    generator = np.random.default_rng(3)
    for count in (5, 9, 13):
        one, other = generator.normal(0.5, 1, count), generator.normal(0, 1, count)
        found = stats.permutation_test(
            (one, other), mean_lead, permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip_p(one - other) == pytest.approx(found.pvalue, abs=1e-12)
    one, other = generator.normal(1, 1, 4), generator.normal(0, 2, 4)
    found = stats.permutation_test((one, other), mean_lead, n_resamples=np.inf)
    assert assignment_p(one, other) == pytest.approx(found.pvalue, abs=1e-12)
    welch, interval = welch_difference(one, other), stats.ttest_ind(one, other, equal_var=False)
    degrees = int(interval.df)  # rounded down, so that the interval is no narrower
    half = stats.t.ppf(0.975, degrees) * (one.mean() - other.mean()) / interval.statistic
    assert welch.high - welch.mean == pytest.approx(half, rel=2e-3)


@pytest.mark.parametrize(("prompts", "draw"), [(12, "normal"), (60, "normal"), (120, "ones")])
def test_the_bootstrap_interval_holds_the_mean_in_95_of_100_cases(
    prompts: int, draw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 2000)
    generator, trials, true = np.random.default_rng(prompts), 800, 0.3
    hits = 0
    for trial in range(trials):
        if draw == "normal":
            values = generator.normal(true, 1.0, prompts)
        else:  # both systems right or wrong: −1, 0 or 1
            values = generator.choice([-1.0, 0.0, 1.0], prompts, p=[0.1, 0.5, 0.4])
        found = bootstrap_difference(values, trial)
        hits += found.low <= true <= found.high
    low, high = binomial_bounds(0.95, trials)
    assert low < hits / trials < high


def test_p_values_are_uniform_where_nothing_differs() -> None:
    """Kolmogorov's bound: the largest distance from the uniform distribution, exceeded once in 1,000 times."""
    generator, trials = np.random.default_rng(1), 1500
    p_values = np.sort([sign_flip_p(generator.standard_t(3, 14)) for _ in range(trials)])
    steps = np.arange(1, trials + 1) / trials
    distance = max(np.abs(steps - p_values).max(), np.abs(steps - 1 / trials - p_values).max())
    assert distance < 1.95 / math.sqrt(trials) + 2**-13  # the test's own steps


def test_the_permutation_of_seeds_is_exact_and_bounded_below() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1, 3).tolist(), generator.normal(1, 1, 4).tolist()
    pooled, lead = [*one, *other], abs(sum(one) / 3 - sum(other) / 4)
    ways = list(combinations(range(7), 3))
    as_large = 0
    for way in ways:
        inside = sum(pooled[i] for i in way) / 3
        outside = sum(pooled[i] for i in range(7) if i not in way) / 4
        as_large += abs(inside - outside) >= lead - 1e-12
    assert assignment_p(one, other) == as_large / len(ways)
    assert assignment_p([5.0, 6.0, 7.0], [1.0, 2.0, 3.0]) == pytest.approx(
        0.1
    )  # the least that 3 and 3 can give


def test_seeds_and_prompts_see_both_kinds_of_chance() -> None:
    generator = np.random.default_rng(2)
    prompts, seeds = generator.normal(0, 1, 300), generator.normal(0, 0.5, (2, 6, 1))
    noise = generator.normal(0, 0.2, (2, 6, 300))
    arms = prompts + seeds + noise
    found = seeds_and_prompts(arms[0], arms[1])
    assert found.mean == pytest.approx(arms[0].mean() - arms[1].mean())
    # What all seeds and arms share of a prompt cancels; the seeds do not. √(5/6) is the bootstrap's own narrowness.
    means = arms.mean(axis=2)
    expected = 1.96 * math.sqrt(5 / 6 * (means[0].var(ddof=1) + means[1].var(ddof=1)) / 6)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)
    narrow = bootstrap_difference(arms[0].mean(axis=0) - arms[1].mean(axis=0))
    assert found.high - found.low > 5 * (narrow.high - narrow.low)  # prompts alone know nothing of seeds


def test_holms_correction() -> None:
    # Worked by hand: 0.005 · 4, 0.01 · 3, 0.03 · 2, then 0.04 · 1 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_edges() -> None:
    assert bootstrap_difference([0.25]).low == 0.25
    assert bootstrap_difference([1.0, 1.0, 1.0]) == bootstrap_difference([1.0])
    found = bootstrap_difference([0.0, 1.0])
    assert 0.0 <= found.low <= found.mean <= found.high <= 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert welch_difference([1.0], [2.0, 3.0]) is None
    with pytest.raises(ValueError, match="no differences"):
        bootstrap_difference([])
