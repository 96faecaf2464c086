"""benchmarks/algorithms.py: which rate is chosen, curves at equal tokens and seconds, and what is apart."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from proxlm import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_best_rate_is_the_smallest_of_the_best_and_never_one_that_failed() -> None:
    from algorithm_numbers import best_rate

    assert best_rate({1e-3: 0.5, 1e-4: 0.2, 3e-4: 0.5, 1e-2: math.nan, 3e-3: -math.inf}) == 3e-4
    assert best_rate({1e-3: -2.0, 1e-4: -3.0}) == 1e-3
    with pytest.raises(ValueError, match=r"no rate of 0\.001, 0\.01 has trained"):
        best_rate({1e-3: -math.inf, 1e-2: math.nan})


@pytest.mark.parametrize(
    ("rates", "best", "beyond"),
    [
        ((1e-4, 3e-4, 1e-3), 1e-4, 3.3e-5),
        ((1e-4, 3e-4, 1e-3), 3e-4, None),
        ((1e-3, 1e-4, 3e-4), 1e-3, 3.3e-3),  # in any order
        ((2e-4, 6e-4), 6e-4, 1.8e-3),
        ((2e-4, 6e-4), 2e-4, 6.7e-5),
        ((1e-3,), 1e-3, None),
    ],
)
def test_one_rate_beyond_the_edge_is_tried(
    rates: tuple[float, ...], best: float, beyond: float | None
) -> None:
    from algorithm_numbers import rate_beyond

    assert rate_beyond(rates, best) == beyond


def test_a_curve_is_read_between_its_evaluations_and_keeps_its_end() -> None:
    from algorithm_numbers import value_at

    places, values = [0.0, 10.0, 30.0], [1.0, 3.0, -1.0]
    read = [value_at(places, values, place) for place in (-5.0, 0.0, 5.0, 10.0, 25.0, 30.0, 99.0)]
    assert read == pytest.approx([1.0, 1.0, 2.0, 3.0, 0.0, -1.0, -1.0])
    # A step without tokens: the later of two evaluations at one place.
    assert value_at([0.0, 10.0, 10.0], [1.0, 2.0, 4.0], 10.0) == 4.0
    with pytest.raises(ValueError, match="must ascend"):
        value_at([0.0, 2.0, 1.0], values, 1.0)
    with pytest.raises(ValueError, match="2 places and 3 values"):
        value_at([0.0, 2.0], values, 1.0)


def test_a_curve_counts_tokens_and_seconds_of_all_steps_until_each_evaluation() -> None:
    from algorithm_numbers import curve_of

    rows: list[dict[str, Any]] = [
        {"response_length": 10.0, "time/cpu": 0.5},
        {
            "response_length": 12.0,
            "time/cpu": 0.25,
            "evaluation/reward": 0.75,
            "evaluation/greedy/reward": 0.5,
            "evaluation/kl": 2.0,
        },
        {"response_length": 2.0, "time/cpu": 1.0},
    ]
    start, point = curve_of(
        rows, {"reward": 0.25, "greedy/reward": 0.125, "kl": 0.0}, responses=8, beta=0.125
    )
    assert start == (0.0, 0.0, 0.25, 0.125, 0.0, 0.25)
    assert point == (176.0, 0.75, 0.75, 0.5, 2.0, 0.5)


def curve(*points: tuple[float, float, float]) -> list[Any]:
    """(tokens, seconds, reward) → points whose greedy reward is twice the reward, with a KL of 1 at β = 0.5."""
    from algorithm_numbers import Point

    return [Point(tokens, seconds, r, 2 * r, 1.0, r - 0.5) for tokens, seconds, r in points]


def test_budgets_are_those_of_the_algorithm_that_needs_the_fewest_and_a_collapsed_run_does_not_set_them() -> (
    None
):
    from algorithm_numbers import at_budget, smallest_budget

    slow = [
        curve((0, 0, 0.0), (100, 8, 0.4)),
        curve((0, 0, 0.2), (80, 12, 0.6)),
        curve((0, 0, 0.0), (90, 9, 0.4)),
    ]
    fast = [
        curve((0, 0, 0.0), (120, 3, 0.3)),
        curve((0, 0, 0.0), (100, 5, 0.5)),
        curve((0, 0, 0.0), (2, 0.1, -1.0)),
    ]
    curves = {"slow": slow, "fast": fast}
    assert smallest_budget(curves, "tokens") == 90  # medians 90 and 100
    assert smallest_budget(curves, "seconds") == 3  # medians 9 and 3
    assert at_budget(slow[0], "tokens", 90) == pytest.approx(
        {"reward": 0.36, "greedy": 0.72, "kl": 1.0, "objective": -0.14}
    )
    assert at_budget(slow[1], "seconds", 3)["reward"] == pytest.approx(0.3)
    assert [at_budget(run, "seconds", 3)["reward"] for run in fast] == pytest.approx([0.3, 0.3, -1.0])


def test_two_algorithms_are_apart_where_prompts_and_seeds_say_so() -> None:
    from algorithm_numbers import difference

    def runs(*means: float) -> list[dict[str, float]]:
        return [{str(prompt): mean + 0.01 * (prompt % 3) for prompt in range(9)} for mean in means]

    found = difference(runs(0.5, 0.6, 0.7), runs(0.2, 0.3, 0.4))
    assert (found.estimate.mean, found.disjoint, found.apart) == (pytest.approx(0.3), True, True)
    # The same mean difference per prompt, but a seed of one lies among those of the other.
    found = difference(runs(0.5, 0.6, 0.3), runs(0.2, 0.3, 0.35))
    assert found.estimate.low > 0
    assert (found.disjoint, found.apart) == (False, False)
    # Each seed has its own held-out prompts: "a" counts as the mean of two seeds.
    found = difference(
        [{"a": 1.0, "b": 2.0}, {"a": 3.0, "c": 4.0}], [{"a": 0.0, "b": 0.0}, {"a": 0.0, "c": 0.0}]
    )
    assert found.estimate.mean == pytest.approx((2.0 + 2.0 + 4.0) / 3)
    # The seeds do not meet, and the prompts disagree.
    ours = [{"a": 1.0, "b": 0.0, "c": 0.0} for _ in range(3)]
    found = difference(ours, [{"a": 0.0, "b": 0.4, "c": 0.4}] * 3)
    assert found.estimate.low < 0 < found.estimate.high
    assert (found.disjoint, found.apart) == (True, False)


def test_tuning_takes_the_best_rate_and_goes_one_beyond_the_edge() -> None:
    from algorithms import SEEDS, TUNING_SEED, tuned_and_run

    asked = []

    def start(rate: float, seed: int) -> Future[dict[str, Any]]:
        asked.append((rate, seed))
        done: Future[dict[str, Any]] = Future()
        failed = {"failed": "updates that are not finite"}
        done.set_result(failed if rate > 0.005 else {"curve": [{"objective": rate}]})
        return done

    found, best, runs = tuned_and_run([1e-4, 1e-3], True, start)
    assert found == {1e-4: 1e-4, 1e-3: 1e-3, 1e-2: -math.inf}
    assert best == 1e-3
    assert asked == [(r, TUNING_SEED) for r in (1e-4, 1e-3, 1e-2)] + [(1e-3, seed) for seed in SEEDS]
    assert len(runs) == 3
    asked.clear()
    assert tuned_and_run([1e-4, 1e-3], False, start)[1] == 1e-3
    assert asked == [(r, TUNING_SEED) for r in (1e-4, 1e-3)] + [(1e-3, seed) for seed in SEEDS]


def test_every_algorithm_gets_the_same_responses_and_its_settings_are_valid() -> None:
    from algorithm_tasks import TASKS
    from algorithms import ALGORITHMS, settings_of

    for task in TASKS.values():
        for name in ALGORITHMS:
            settings = settings_of(task, name, spread=0.25)
            config = load_config(
                "ppo",
                None,
                {
                    "model.policy": "model",
                    "data.prompts": "prompts.jsonl",
                    "reward.use": "length",
                    **settings,
                },
            )
            assert config.ppo.batch_size * config.ppo.samples_per_prompt == task.responses
            assert config.ppo.kl_coef == pytest.approx(4 * task.beta if name == "GRPO" else task.beta)
            assert config.run.threads == 1


def test_the_spread_is_that_of_the_groups_that_vary() -> None:
    from algorithm_tasks import spread_of

    # Standard deviations with Bessel's correction: √2 / 2 · 2 = 1.414, 0 (left out), 1.
    assert spread_of([[0.0, 2.0], [0.5, 0.5], [1.0, 2.0, 3.0]]) == pytest.approx((2**0.5 + 1) / 2)
    with pytest.raises(ValueError, match="nothing that a group could learn from"):
        spread_of([[1.0, 1.0], [0.0]])


def test_tables_go_between_the_marks_and_leave_the_page_around_them() -> None:
    from algorithm_page import BEGIN, END, between_marks

    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    assert between_marks(page, "new") == f"# Title\n\n{BEGIN}\n\nnew\n{END}\n\nafter\n"
    with pytest.raises(SystemExit, match="has no lines"):
        between_marks("# Title\n", "new")


def test_a_section_shows_every_seed_and_what_is_apart() -> None:
    from algorithm_page import section

    def run(end: float, kl: float = 1.0) -> dict[str, Any]:
        curve = [
            {"tokens": 0.0, "seconds": 0.0, "reward": 0.1, "greedy": 0.2, "kl": 0.0, "objective": 0.1},
            {
                "tokens": 100.0,
                "seconds": 4.0,
                "reward": end,
                "greedy": 0.3,
                "kl": kl,
                "objective": end - 0.05 * kl,
            },
        ]
        numbers = {"objective": end - 0.05 * kl, "reward": end, "greedy": 0.3}
        return {
            "curve": curve,
            "prompts": {str(i): {k: v + 0.001 * i for k, v in numbers.items()} for i in range(4)},
        }

    task = {
        "spread": 0.25,
        "beta": 0.05,
        "tuning": {"PPO": {"0.001": 0.3, "0.003": 0.2}, "RLOO": {"0.001": 0.1, "0.003": 0.25}},
        "chosen": {"PPO": 0.001, "RLOO": 0.003},
        "seeds": {"PPO": [run(0.5), run(0.6), run(0.55)], "RLOO": [run(0.7), run(0.8), run(0.75, kl=2.0)]},
    }
    text = section("stories", task)
    ppo = "| PPO | 0.001 | 0.450, 0.550, 0.500 | **0.500** | 0.500, 0.600, 0.550 | 0.300, 0.300, 0.300 |"
    assert f"{ppo} 1.00, 1.00, 1.00 | 4, 4, 4 |" in text
    assert "| RLOO | **+0.183 ± 0.000** | **+0.200 ± 0.000** | +0.000 ± 0.000 |" in text
    assert "| RLOO | 0.100 | **0.250** |" in text
    assert "GRPO's β is 0.2 (spread 0.25)" in text
