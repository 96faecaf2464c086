"""The benchmark of runs that differ in one thing: its arithmetic, and what its experiments share and differ in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxlm import load_config

ROOT = Path(__file__).parents[1]
NAMES = ["mask", "critic-head", "critic", "number-game", "tic-tac-toe", "frozen-lake"]


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def row(reward: float, **more: float | None) -> dict[str, Any]:
    return {"reward": reward, "response_length": 10.0, "time": 100 * reward, **more}


HELD_OUT = {"reward": 0.5, "greedy/reward": 0.6, "kl": 2.0, "length": 9.0}


def test_the_numbers_of_a_run() -> None:
    from arms import numbers_of

    # 12 steps with rewards 0, 0.1, …, 1.1; the metric is undefined in the first step and absent in the last.
    rows = [row(i / 10, spread=None if i == 0 else float(i)) for i in range(11)] + [row(1.1)]
    found = numbers_of(rows, HELD_OUT, ["spread", "unknown"], responses=8)
    assert found == {
        "reward": 0.5,
        "greedy/reward": 0.6,
        "kl": 2.0,
        "late": pytest.approx(0.9),  # of 0.7 … 1.1
        "all": pytest.approx(0.55),
        "steps": 12,
        "tokens": 12 * 10 * 8,
        "seconds": pytest.approx(110),
        "spread/first": 1.5,  # of steps 2 and 3
        "spread/last": 9.5,  # of steps 10 and 11
    }


def run(reward: float, steps: int = 40) -> dict[str, float]:
    return {"reward": reward, "all": reward, "steps": steps}


def test_differences_are_paired_by_seed() -> None:
    from arms import differences

    runs = {
        "first": [run(0.1), run(0.5), run(0.9)],
        "better": [run(0.2), run(0.7), run(1.2)],  # by 0.1, 0.2, 0.3
        "alike": [run(0.1), run(0.6), run(0.8)],
    }
    found = differences(runs, "reward")
    assert list(found) == ["better", "alike"]
    better = found["better"]
    # t of 2 degrees of freedom is 4.3027: 4.3027 · 0.1 / √3.
    assert (better.mean, better.high - better.mean) == pytest.approx((0.2, 0.24841), abs=1e-5)
    assert (better.mean - better.low) == pytest.approx(0.24841, abs=1e-5)
    assert found["alike"].mean == pytest.approx(0.0)
    assert found["alike"].low < 0 < found["alike"].high


def test_rewards_of_all_steps_are_compared_only_between_runs_of_one_length() -> None:
    from arms import differences

    runs = {
        "first": [run(0.1), run(0.2)],
        "shorter": [run(0.3, 32), run(0.4, 32)],
        "other": [run(0.2), run(0.4)],
    }
    assert list(differences(runs, "all")) == ["other"]
    assert list(differences(runs, "reward")) == ["shorter", "other"]


def test_every_arm_has_the_rate_that_it_tuned_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import arms

    made: list[tuple[str, int, dict[str, Any]]] = []
    best = {"scalar": 3e-3, "pretrained 4 steps, then 12": 1e-3}

    def numbers(one: Any) -> dict[str, float]:
        made.append((one.arm, one.seed, one.more))
        rate = one.more["optim.critic.lr"]
        return {"explained_variance/last": -abs(rate - best[one.arm]), "reward": rate, "steps": 16}

    monkeypatch.setattr(arms.Run, "numbers", numbers)
    found = arms.compare("critic", tmp_path, [0, 1, 2], map)
    assert found["chosen"] == best
    tuning, final = made[:6], made[6:]
    assert {(arm, more["optim.critic.lr"]) for arm, _, more in tuning} == {
        (arm, rate) for arm in best for rate in (1e-3, 3e-3, 1e-2)
    }
    assert {seed for _, seed, _ in tuning} == {arms.TUNING_SEED}
    assert [(arm, seed) for arm, seed, _ in final] == [(arm, seed) for seed in (0, 1, 2) for arm in best]
    assert all(more == {"optim.critic.lr": best[arm]} for arm, _, more in final)
    assert [len(runs) for runs in found["runs"].values()] == [3, 3]


def test_the_table_has_seeds_side_by_side_and_marks_what_leaves_zero_out() -> None:
    from arms import section

    def numbers(reward: float, **more: float) -> dict[str, float]:
        found = {"reward": reward, "greedy/reward": 0.25, "kl": 1.234, "late": 0.5, "all": 0.375}
        return {**found, "steps": 40, "tokens": 61440, **more}

    runs = {
        "from 0": [numbers(0.5, **{"spread/first": 0.1, "spread/last": 0.5}) for _ in range(3)],
        "other": [numbers(0.5 + gain) for gain in (0.09, 0.1, 0.11)],
    }
    found = {"title": "One or the other", "chosen": {"from 0": 0.001, "other": 0.003}, "runs": runs}
    lines = section(found, ["spread", "unknown"]).splitlines()
    assert lines[0] == "## One or the other"
    alike = "0.250, 0.250, 0.250 | 1.23, 1.23, 1.23 | 0.500, 0.500, 0.500 | 0.375, 0.375, 0.375"
    assert lines[4] == f"| from 0 | 0.001 | 61,440 | 0.500, 0.500, 0.500 | {alike} | 0.1 → 0.5 |"
    assert lines[5] == f"| other | 0.003 | 61,440 | 0.590, 0.600, 0.610 | {alike} | – → – |"
    nothing = "+0.000 [+0.000, +0.000]"
    # 4.3027 · 0.01 / √3 = 0.0248
    assert lines[9] == (
        f"| other | **+0.100 [+0.075, +0.125]** | {nothing} | +0.00 [+0.00, +0.00] | {nothing} | {nothing} |"
    )


def arms_of(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from arms_experiments import EXPERIMENTS

    experiment = EXPERIMENTS[name]
    for arm, settings in experiment.arms.items():
        yield arm, {"model.policy": "x", **experiment.common, **settings}


def test_these_are_the_experiments() -> None:
    from arms_experiments import EXPERIMENTS

    assert list(EXPERIMENTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_ones_that_the_library_takes(name: str) -> None:
    """And the arms learn from equally many responses, those of the critic that comes before included."""
    from arms_experiments import EXPERIMENTS

    experiment, responses = EXPERIMENTS[name], {}
    for arm, settings in arms_of(name):
        config = load_config("ppo", ROOT / "recipes" / experiment.recipe, settings)
        sampled = config.ppo.batch_size * config.ppo.samples_per_prompt
        steps = config.ppo.steps
        if arm in experiment.critics:
            more = {**settings, **experiment.critics[arm]}
            steps += load_config("ppo", ROOT / "recipes" / experiment.recipe, more).ppo.steps
        responses[arm] = steps * sampled
    assert len(set(responses.values())) == 1, responses


@pytest.mark.parametrize("name", NAMES)
def test_arms_differ(name: str) -> None:
    from arms_experiments import EXPERIMENTS

    of_arm = [(sorted(settings.items()), arm in EXPERIMENTS[name].critics) for arm, settings in arms_of(name)]
    assert len(of_arm) > 1
    assert all(one not in of_arm[:i] for i, one in enumerate(of_arm))


def test_a_cell_of_stale_rollouts_is_paired_with_the_one_without_a_correction() -> None:
    from mismatch import summary, table

    def rows(reward: float, kl: float, share: float) -> list[dict[str, float]]:
        # The first 8 rows are not settled: their KL and weights do not count, their rewards do.
        first = [{"reward": 0.0, "rollout_kl": 9.0, "staleness_weight/effective_share": 0.0}] * 8
        return first + [{"reward": reward, "rollout_kl": kl, "staleness_weight/effective_share": share}] * 8

    cells = []
    for mode, rewards in (("none", (0.2, 0.4, 0.6)), ("token", (0.4, 0.8, 1.2))):
        found = summary([rows(reward, 0.1, 0.5) for reward in rewards], "staleness")
        cells.append({"staleness": 4, "weights": "policy", "mode": mode, **found})
    settings = {"seeds": 3, "steps": 16, "lr": 3e-3}
    lines = table({"settings": settings, "cells": cells}).splitlines()
    # Differences 0.1, 0.2, 0.3 of the means of all steps.
    assert lines[-2] == "| 4 | policy | none | 0.1 | 0.500 |  | 0.200 (0.100 – 0.300) |  |"
    assert lines[-1] == (
        "| 4 | policy | token | 0.1 | 0.500 |  | 0.400 (0.200 – 0.600) | +0.200 [-0.048, +0.448] |"
    )
