"""Which metrics are drawn together, and the numbers of each curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxlm.report.run_data import Row, finite
from proxlm.runlog import metric_names as names
from proxlm.runlog.metric import Metric, MetricFamily

MOST_POINTS = 2000
# What is drawn of the evaluations before and after a run.
_EVALUATED = (names.REWARD, names.GREEDY(names.REWARD), names.KL)


@dataclass(frozen=True)
class Plot:
    """One plot of a group.

    Attributes:
        group: the topic it belongs to. Those of MAIN stand first, and large.
        names: the metrics, and families of metrics, that it draws.
        band: a metric drawn as ± around the first one; empty: none.
        fold: a curve that never changes is named below the plots instead of drawn.
    """

    group: str
    title: str
    names: tuple[Metric | MetricFamily, ...]
    band: str = ""
    fold: bool = False


MAIN = "Main"
PLOTS = (
    Plot(
        MAIN,
        "Reward on held-out prompts, sampled and greedy",
        (names.EVALUATION(names.REWARD), names.EVALUATION(names.GREEDY(names.REWARD))),
    ),
    Plot(
        MAIN,
        "Loss, nats a token (reward, dpo: a record)",
        (names.LOSS, names.VALIDATION_LOSS, names.AVERAGE(names.VALIDATION_LOSS)),
    ),
    Plot(MAIN, "Validation loss by source, nats a token", (names.VALIDATION_SOURCE,)),
    Plot(MAIN, "Accuracy on held-out records", (names.VALIDATION_ACCURACY,)),
    Plot(
        MAIN,
        "KL of teacher and student, nats a token",
        (names.VALIDATION_FORWARD_KL, names.VALIDATION_REVERSE_KL),
    ),
    Plot(MAIN, "Greedy agreement with the teacher", (names.VALIDATION_AGREEMENT,)),
    Plot(MAIN, "Reward in training", (names.REWARD, names.SCORE), band=names.REWARD_STD),
    Plot(MAIN, "Return of the newest 100 episodes", (names.EPISODE_RETURN,)),
    Plot(
        MAIN,
        "KL to the teacher, nats a response",
        (names.TEACHER_KL, names.EVALUATION(names.TEACHER_KL)),
    ),
    Plot(MAIN, "KL to the reference, nats a response", (names.KL, names.EVALUATION(names.KL))),
    Plot("Sources", "How many times each was read", (names.EPOCHS,)),
    Plot("Held-out records", "Score: chosen − rejected", (names.VALIDATION_MARGIN,)),
    Plot("Held-out records", "Correlation of scores and labels", (names.VALIDATION_CORRELATION,)),
    Plot("Held-out records", "Mean absolute error of scores", (names.VALIDATION_ERROR,)),
    Plot("Held-out records", "Mean score", (names.VALIDATION_SCORE,)),
    Plot("Held-out records", "Standard deviation of the ensemble's scores", (names.VALIDATION_SPREAD,)),
    Plot("Held-out records", "log(π / π_ref) of the chosen completion, nats", (names.VALIDATION_CHOSEN,)),
    Plot("Reward", "Components of the reward", (names.REWARD_COMPONENT,)),
    Plot("Reward", "Responses whose reward failed", (names.REWARD_FAILED,), fold=True),
    Plot("Distance from the reference", "KL, nats a token", (names.KL_PER_TOKEN,)),
    Plot("Distance from the reference", "KL coefficient", (names.KL_COEF,), fold=True),
    Plot("Distance from the reference", "Entropy, nats a token", (names.ENTROPY,)),
    Plot("Distance from the teacher", "KL to the teacher, nats a token", (names.TEACHER_KL_PER_TOKEN,)),
    Plot("Policy", "Policy loss", (names.POLICY_LOSS,)),
    Plot("Policy", "Clip fraction", (names.CLIP_FRACTION,)),
    Plot("Policy", "Approximate KL of the update", (names.APPROX_KL,)),
    Plot("Policy", "Probability ratio", (names.RATIO_MEAN, names.RATIO_MAX)),
    Plot("Policy", "Advantage", (names.ADVANTAGE_MEAN, names.ADVANTAGE_STD)),
    Plot("Policy", "Engine against trainer, largest log-prob difference", (names.ROLLOUT_GAP,)),
    Plot("Policy", "Policy that sampled to trainer, KL, nats a token", (names.ROLLOUT_KL,)),
    Plot("Policy", "Updates between sampling and learning", (names.STALENESS,), fold=True),
    Plot(
        "Policy",
        "Weights of the corrections",
        (names.WEIGHT_MEAN, names.WEIGHT_MAX),
        fold=True,
    ),
    Plot(
        "Policy",
        "Effective and dropped share of the weights",
        (names.WEIGHT_EFFECTIVE, names.WEIGHT_DROPPED),
        fold=True,
    ),
    Plot("Critic", "Value loss", (names.VALUE_LOSS,)),
    Plot("Critic", "Explained variance", (names.EXPLAINED_VARIANCE,)),
    Plot("Critic", "Explained variance by quarter of the response", (names.EXPLAINED_VARIANCE_QUARTER,)),
    Plot(
        "Critic",
        "Calibration: slope of returns over values, mean value − mean return",
        (names.VALUE_SLOPE, names.VALUE_BIAS),
    ),
    Plot("Critic", "Standard deviation of values over the heads", (names.VALUE_SPREAD,)),
    Plot("Critic", "Mean advantage by quarter of the response", (names.ADVANTAGE_QUARTER,)),
    Plot("Critic", "Values and returns", (names.VALUE_MEAN, names.RETURN_MEAN)),
    Plot("Responses", "Length in tokens", (names.RESPONSE_LENGTH,)),
    Plot("Responses", "Share that ended", (names.EOS_SHARE, names.ENDED_SHARE)),
    Plot("Episodes", "Length in steps, newest 100 episodes", (names.EPISODE_LENGTH,)),
    Plot("Episodes", "Episodes that ended", (names.EPISODES_ENDED,)),
    Plot("Optimiser", "Learning rate", (names.LR, names.LR_MODEL)),
    Plot(
        "Optimiser",
        "Minibatches whose gradient was not finite",
        (names.GRAD_NORM_MODEL_NOT_FINITE,),
        fold=True,
    ),
    Plot("Optimiser", "Gradient norm", (names.GRAD_NORM, names.GRAD_NORM_MODEL)),
    Plot("Speed and memory", "Seconds by phase", (names.TIME_PHASE,)),
    Plot("Speed and memory", "Tokens a second", (names.TOKENS_PER_SECOND, names.TOKENS_PER_SECOND_PHASE)),
    Plot("Speed and memory", "Environment steps a second", (names.STEPS_PER_SECOND,)),
    Plot("Speed and memory", "Environment steps so far", (names.ENVIRONMENT_STEPS,)),
    Plot("Speed and memory", "Peak memory, GiB", (names.MEMORY_GB,)),
)


def curves(rows: list[Row], evaluation: Row | None = None) -> dict[str, Any]:
    """What the page draws: x, points [{name: curve}], plots, and metrics that stayed as they were.

    A run of more than MOST_POINTS rows is averaged over groups of neighbours; `every` says how many.

    Args:
        rows: of metrics.jsonl.
        evaluation: what evaluation.json holds; a run's evaluations before and after it are points, too.
    """
    rows = _with_evaluations(rows, evaluation)
    every = -(-len(rows) // MOST_POINTS)
    groups = [rows[i : i + every] for i in range(0, len(rows), every)]
    series = _series(groups)
    plots, constant, same = _plots(list(series), series)
    return {
        "step": [group[-1][names.STEP] for group in groups],
        "minutes": [_short(group[-1][names.TIME] / 60) for group in groups],
        "every": every,
        "series": series,
        "plots": plots,
        "main": MAIN,
        "constant": constant,
        "same": same,
    }


def _with_evaluations(rows: list[Row], evaluation: Row | None) -> list[Row]:
    """The rows with the evaluation before the run as step 0, and that after it as the last step's."""
    found: dict[str, Row] = {
        model["name"]: {
            str(names.EVALUATION(name)): estimate["mean"]
            for name, estimate in model["metrics"].items()
            if name in _EVALUATED and estimate["mean"] is not None
        }
        for model in (evaluation or {}).get("models", ())
    }
    if before := found.get("before"):
        rows = [{names.STEP: 0, names.TIME: 0.0, **before}, *rows]
    return [*rows[:-1], {**found.get("after", {}), **rows[-1]}]


def _series(groups: list[list[Row]]) -> dict[str, dict[str, list[Any]]]:
    """The points of each metric: `at`, the groups that have it, and `y`, its mean there; None where not finite."""
    series: dict[str, dict[str, list[Any]]] = {}
    for i, group in enumerate(groups):
        values: dict[str, list[Any]] = {}
        for row in group:
            for name, value in row.items():
                values.setdefault(name, []).append(value)
        for name, several in values.items():
            curve = series.setdefault(name, {"at": [], "y": []})
            curve["at"].append(i)
            curve["y"].append(_mean(several))
    return {name: curve for name, curve in series.items() if name not in (names.STEP, names.TIME)}


def _mean(values: list[Any]) -> float | None:
    numbers = finite(values)
    return _short(sum(numbers) / len(numbers)) if numbers else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _plots(
    found: list[str], series: dict[str, Any]
) -> tuple[list[Row], dict[str, float | None], dict[str, str]]:
    """The plots that there are curves for, other metrics that never changed, those that another one covers."""
    left = dict.fromkeys(found)
    plots: list[Row] = []
    constant: dict[str, float | None] = {}
    same: dict[str, str] = {}
    for plot in PLOTS:
        drawn = [name for metric in plot.names for name in left if metric.matches(name)]
        band = plot.band if drawn and plot.band in left else ""
        for name in [*drawn, band]:
            left.pop(name, None)
        if plot.fold:
            drawn = _fold(drawn, series, constant)
        if drawn:
            same |= {name: drawn[0] for name in drawn[1:] if series[name] == series[drawn[0]]}
            drawn = [name for name in drawn if name not in same]
            plots.append({"group": plot.group, "title": plot.title, "names": drawn, "band": band})
    others = _fold(list(left), series, constant)
    plots += [{"group": "Other", "title": name, "names": [name], "band": ""} for name in others]
    return plots, constant, same


def _fold(found: list[str], series: dict[str, Any], constant: dict[str, float | None]) -> list[str]:
    """Move the curves that never change to `constant`; returns the names of the others."""
    changing = dict.fromkeys(name for name in found if len(set(series[name]["y"])) > 1)
    constant |= {name: series[name]["y"][0] for name in found if name not in changing}
    return list(changing)
