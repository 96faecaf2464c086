from typing import Any

from proxlm.report.curves import curves
from proxlm.report.samples import MOST_STEPS, sample_views, spread


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "time": 60.0 * step, **values}


def sample(step: int, **per_token: list[float | None]) -> dict[str, Any]:
    length = max((len(values) for values in per_token.values()), default=0)
    return {"step": step, "prompt": "p", "response": "r", "tokens": ["t"] * length, "per_token": per_token}


def test_metrics_of_one_kind_share_a_plot_in_reading_order() -> None:
    rows = [
        row(i, **{"reward/b": i, "reward": i, "reward/a": -i, "lr/policy": 0.1, "unheard_of": i})
        for i in (1, 2)
    ]
    drawn = [(plot["group"], plot["names"]) for plot in curves(rows)["plots"]]
    assert drawn == [
        ("Main", ["reward"]),
        ("Reward", ["reward/b", "reward/a"]),
        ("Optimiser", ["lr/policy"]),
        ("Other", ["unheard_of"]),
    ]


def test_a_curve_has_points_only_where_the_metric_is() -> None:
    found = curves([row(1, loss=3.0), row(2, loss=None, validation_loss=2.5), row(3, loss=1.0)])
    assert found["series"] == {
        "loss": {"at": [0, 1, 2], "y": [3.0, None, 1.0]},
        "validation_loss": {"at": [1], "y": [2.5]},
    }
    assert (found["step"], found["minutes"]) == ([1, 2, 3], [1.0, 2.0, 3.0])


def test_the_evaluations_before_and_after_a_run_are_points() -> None:
    def model(name: str, reward: float, greedy: float | None) -> dict[str, Any]:
        metrics = {"reward": {"mean": reward}, "greedy/reward": {"mean": greedy}, "length": {"mean": 9.0}}
        return {"name": name, "metrics": metrics}

    rows = [row(1, kl=0.0), row(2, kl=1.0, **{"evaluation/reward": 0.4}), row(3, kl=2.0)]
    found = curves(rows, {"models": [model("before", 0.1, None), model("after", 0.5, 0.7)]})
    assert found["step"] == [0, 1, 2, 3]
    assert found["series"]["evaluation/reward"] == {"at": [0, 2, 3], "y": [0.1, 0.4, 0.5]}
    assert found["series"]["evaluation/greedy/reward"] == {"at": [3], "y": [0.7]}
    assert "evaluation/length" not in found["series"]
    # An evaluation of the last step that the run has made itself stays.
    rows[-1]["evaluation/reward"] = 0.6
    found = curves(rows, {"models": [model("after", 0.5, 0.7)]})
    assert found["series"]["evaluation/reward"] == {"at": [1, 2], "y": [0.4, 0.6]}


def test_a_curve_that_another_one_covers_is_named() -> None:
    found = curves([row(i, reward=float(i), score=float(i)) for i in (1, 2)])
    assert [plot["names"] for plot in found["plots"]] == [["reward"]]
    assert found["same"] == {"score": "reward"}


def test_the_reward_has_a_band_and_its_spread_no_plot() -> None:
    plots = curves([row(1, reward=1.0, reward_std=0.5), row(2, reward=1.5, reward_std=0.25)])["plots"]
    assert [(plot["names"], plot["band"]) for plot in plots] == [(["reward"], "reward_std")]
    # Without a reward there is nothing to put a band around.
    plots = curves([row(1, reward_std=0.5), row(2, reward_std=0.25)])["plots"]
    assert [(plot["names"], plot["band"]) for plot in plots] == [(["reward_std"], "")]


def test_a_constant_reward_is_drawn_but_a_constant_oddity_is_only_named() -> None:
    never = "grad_norm/policy_not_finite"
    rows = [
        row(i, **{"reward": 0.0, "odd": 3.0, "kl_coef": i, "grad_norm/policy": 1.0, never: 0.0})
        for i in (1, 2)
    ]
    found = curves(rows)
    assert [plot["names"] for plot in found["plots"]] == [["reward"], ["kl_coef"], ["grad_norm/policy"]]
    assert found["constant"] == {"odd": 3.0, never: 0.0}


def test_spread_keeps_the_ends() -> None:
    assert spread([1, 2, 3], 3) == [1, 2, 3]
    assert spread(list(range(101)), 3) == [0, 50, 100]
    assert spread([], 3) == []
    assert len(set(spread(list(range(1000)), 40))) == 40


def test_scales_fit_the_numbers_that_are_shown() -> None:
    views = sample_views([sample(1, kl=[-1.0, 0.5], value=[0.2, 0.6], logprob=[-3.0, 0.0], odd=[None, None])])
    scales = {
        q["name"]: (round(q["centre"], 6), round(q["reach"], 6), q["below"], q["above"])
        for q in views["quantities"]
    }
    assert scales == {
        "kl": (0.0, 1.0, True, True),
        "value": (0.4, 0.2, True, True),
        "logprob": (0.0, 3.0, True, False),
        "odd": (0.0, 0.0, False, False),
    }
    assert [q["label"] for q in views["quantities"]] == ["KL", "Value", "Log-prob", "odd"]


def test_samples_are_chosen_over_the_whole_run() -> None:
    rows = [sample(step, kl=[0.1]) for step in range(100, 0, -1) for _ in range(5)]
    views = sample_views(rows)
    assert views["all_steps"] == 100
    steps = sorted({text["step"] for text in views["texts"]})
    assert (len(steps), steps[0], steps[-1]) == (MOST_STEPS, 1, 100)
    assert [token["step"] for token in views["tokens"]] == [1] * 3 + [51] * 3 + [100] * 3
    assert all("per_token" not in text and "tokens" not in text for text in views["texts"])


def test_samples_without_tokens_are_texts_only() -> None:
    views = sample_views([{"step": 1, "prompt": "p", "response": "r"}])
    assert (len(views["texts"]), views["tokens"], views["quantities"]) == (1, [], [])
