"""The top of the report: the run in a few numbers."""

from __future__ import annotations

from pathlib import PurePath

from proxlm.config import (
    ControlConfig,
    DistillConfig,
    DPOConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from proxlm.report.run_data import RunData, finite
from proxlm.runlog import metric_names as names
from proxlm.runlog.saved_settings import RunConfig
from proxlm.runlog.text import duration, number
from proxlm.text import in_html

# How many steps at either end of the run the headline averages.
ENDS = 5


def headline(run: RunData) -> str:
    """The run in a few numbers."""
    tiles = [("Job", run.job), ("Model", _model(run.config)), ("Steps", _steps(run))]
    tiles.append(("Duration", duration(run.metrics[-1][names.TIME])))
    tiles += _held_out(run)
    for name, title in (
        (names.REWARD, "Reward in training"),
        (names.TEACHER_KL, "KL to the teacher"),
        (names.KL, "KL to the reference"),
        (names.LOSS, "Loss"),
    ):
        values = finite([row.get(name) for row in run.metrics])
        if values:
            count = max(1, min(ENDS, len(values) // 2))  # the two ends of a short run do not overlap
            ends = (values[:count], values[-count:])
            tiles.append((title, " → ".join(number(sum(end) / len(end)) for end in ends)))
    if validation := finite([row.get(names.VALIDATION_LOSS) for row in run.metrics]):
        tiles.append(("Best validation loss", number(min(validation))))
    if accuracy := finite([row.get(names.VALIDATION_ACCURACY) for row in run.metrics]):
        tiles.append(("Validation accuracy", f"{number(accuracy[0])} → {number(accuracy[-1])}"))
    if run.best is not None:
        metric = "" if run.config is None else run.config.best_metric()
        best = finite([row.get(metric) for row in run.metrics if row[names.STEP] == run.best])
        found = f": {metric} {number(best[0])}" if best else ""
        tiles.append(("Kept as the best", f"step {run.best:,}{found}"))
    items = "".join(f"<div><dt>{in_html(name)}</dt><dd>{in_html(value)}</dd></div>" for name, value in tiles)
    note = (
        f"A → B: means of the first and of the last {ENDS} values, of a short run of its halves; held out: before and"
        " after the run."
    )
    return f'<dl class="tiles">{items}</dl><p class="note">{note}</p>'


def _held_out(run: RunData) -> list[tuple[str, str]]:
    """The reward on held-out prompts before and after the run, of sampled and of greedy responses."""
    models = {model["name"]: model["metrics"] for model in (run.evaluation or {}).get("models", ())}
    found = []
    for metric, title in ((names.REWARD, "sampled"), (names.GREEDY(names.REWARD), "greedy")):
        ends = [models.get(name, {}).get(metric, {}).get("mean") for name in ("before", "after")]
        if None not in ends:
            found.append((f"Held-out reward, {title}", " → ".join(map(number, ends))))
    return found


def _steps(run: RunData) -> str:
    """The newest step, and of how many where the run has not done them all."""
    done, planned = run.metrics[-1][names.STEP], _planned_steps(run.config)
    return f"{done:,} of {planned:,}" if planned is not None and planned != done else f"{done:,}"


def _planned_steps(config: RunConfig | None) -> int | None:
    if isinstance(config, PPOConfig):
        return config.ppo.steps
    if isinstance(config, PretrainConfig | SFTConfig | RewardConfig | DPOConfig | DistillConfig):
        return config.train.steps
    return None


def _model(config: RunConfig | None) -> str:
    """The model that is trained, by a short name."""
    if config is None:
        return "?"
    if isinstance(config, ControlConfig):
        return f"policy for {config.environment.id}"
    if config.model.policy or isinstance(config, PPOConfig | DPOConfig):
        return "/".join(PurePath(config.model.policy).parts[-2:])
    new = config.new if isinstance(config, PretrainConfig) else config.scratch
    return f"new {new.type}, {new.layers} × {new.hidden}"
