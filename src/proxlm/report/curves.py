"""Which metrics are drawn together, and the numbers of each curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proxlm.report.run_data import Row, finite

MOST_POINTS = 2000


@dataclass(frozen=True)
class Plot:
    """One plot. names: metrics, "x/*" for all that begin with x/; band: a metric drawn as ± around the first.

    fold: a curve that never changes is only named, not drawn.
    """

    group: str
    title: str
    names: tuple[str, ...]
    band: str = ""
    fold: bool = False


PLOTS = (
    Plot("Loss", "Loss, nats a token", ("loss", "validation_loss")),
    Plot("Reward", "Reward", ("reward", "score"), band="reward_std"),
    Plot("Reward", "Return of the newest 100 episodes", ("episode_return",)),
    Plot("Reward", "Components of the reward", ("reward/*",)),
    Plot("Reward", "Responses whose reward failed", ("reward_failed",), fold=True),
    Plot("Distance from the reference", "KL, nats a response", ("kl",)),
    Plot("Distance from the reference", "KL, nats a token", ("kl_per_token",)),
    Plot("Distance from the reference", "KL coefficient", ("kl_coef",), fold=True),
    Plot("Distance from the reference", "Entropy, nats a token", ("entropy",)),
    Plot("Policy", "Policy loss", ("policy_loss",)),
    Plot("Policy", "Clip fraction", ("clip_fraction",)),
    Plot("Policy", "Approximate KL of the update", ("approx_kl",)),
    Plot("Policy", "Probability ratio", ("ratio_mean", "ratio_max")),
    Plot("Policy", "Advantage", ("advantage_mean", "advantage_std")),
    Plot("Policy", "Engine against trainer, largest log-prob difference", ("rollout_gap",)),
    Plot("Policy", "Policy that sampled to trainer, KL, nats a token", ("rollout_kl",)),
    Plot("Policy", "Updates between sampling and learning", ("staleness",), fold=True),
    Plot("Policy", "Weights of the rollout correction", ("correction_mean", "correction_max"), fold=True),
    Plot("Policy", "Effective share of the weights", ("correction_share",), fold=True),
    Plot("Critic", "Value loss", ("value_loss",)),
    Plot("Critic", "Explained variance", ("explained_variance",)),
    Plot("Critic", "Explained variance by quarter of the response", ("explained_variance/*",)),
    Plot("Critic", "Values and returns", ("value_mean", "return_mean")),
    Plot("Responses", "Length in tokens", ("response_length",)),
    Plot("Responses", "Share that ended", ("eos_share", "ended_share")),
    Plot("Episodes", "Length in steps, newest 100 episodes", ("episode_length",)),
    Plot("Episodes", "Episodes that ended", ("episodes_ended",)),
    Plot("Optimiser", "Learning rate", ("lr", "lr/*")),
    Plot(
        "Optimiser",
        "Minibatches whose gradient was not finite",
        ("grad_norm/policy_not_finite", "grad_norm/critic_not_finite"),
        fold=True,
    ),
    Plot("Optimiser", "Gradient norm", ("grad_norm", "grad_norm/*")),
    Plot("Speed and memory", "Seconds by phase", ("time/*",)),
    Plot("Speed and memory", "Tokens a second", ("tokens_per_second", "tokens_per_second/*")),
    Plot("Speed and memory", "Environment steps a second", ("steps_per_second",)),
    Plot("Speed and memory", "Environment steps so far", ("env_steps",)),
    Plot("Speed and memory", "Peak memory, GiB", ("memory_gb",)),
)


def curves(rows: list[Row]) -> dict[str, Any]:
    """What the page draws: x, points [{name: curve}], plots, and metrics that stayed as they were.

    A run of more than MOST_POINTS rows is averaged over groups of neighbours; `every` says how many.
    """
    every = -(-len(rows) // MOST_POINTS)
    groups = [rows[i : i + every] for i in range(0, len(rows), every)]
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "time")))
    series = {name: _curve(groups, name) for name in names}
    plots, constant = _plots(names, series)
    return {
        "step": [group[-1]["step"] for group in groups],
        "minutes": [_short(group[-1]["time"] / 60) for group in groups],
        "every": every,
        "series": series,
        "plots": plots,
        "constant": constant,
    }


def _curve(groups: list[list[Row]], name: str) -> dict[str, list[Any]]:
    """Points of one metric: `at`, the groups that have it, and `y`, its mean there; None where not finite."""
    at = [i for i, group in enumerate(groups) if any(name in row for row in group)]
    return {"at": at, "y": [_mean([row[name] for row in groups[i] if name in row]) for i in at]}


def _mean(values: list[Any]) -> float | None:
    numbers = finite(values)
    return _short(sum(numbers) / len(numbers)) if numbers else None


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _plots(names: list[str], series: dict[str, Any]) -> tuple[list[Row], dict[str, float | None]]:
    """The plots that there are curves for, and the other metrics that never changed."""
    left = list(names)
    plots: list[Row] = []
    constant: dict[str, float | None] = {}
    for plot in PLOTS:
        drawn = [name for pattern in plot.names for name in left if _matches(name, pattern)]
        band = plot.band if drawn and plot.band in left else ""
        left = [name for name in left if name not in drawn and name != band]
        if plot.fold:
            drawn = _fold(drawn, series, constant)
        if drawn:
            plots.append({"group": plot.group, "title": plot.title, "names": drawn, "band": band})
    others = _fold(left, series, constant)
    plots += [{"group": "Other", "title": name, "names": [name], "band": ""} for name in others]
    return plots, constant


def _fold(names: list[str], series: dict[str, Any], constant: dict[str, float | None]) -> list[str]:
    """Move the curves that never change to `constant`; returns the names of the others."""
    changing = [name for name in names if len(set(series[name]["y"])) > 1]
    constant |= {name: series[name]["y"][0] for name in names if name not in changing}
    return changing


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
