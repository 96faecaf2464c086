"""The top of the report: the run in a few numbers."""

from __future__ import annotations

from html import escape
from pathlib import PurePath

from proxlm.report.run_data import RunData, finite
from proxlm.runlog import metric_names as names
from proxlm.runlog.text import duration, number

# How many steps at either end of the run the headline averages.
ENDS = 5


def headline(run: RunData) -> str:
    """The run in a few numbers."""
    tiles = [("Job", run.job), ("Model", _model(run)), ("Steps", _steps(run))]
    tiles.append(("Duration", duration(run.metrics[-1][names.TIME])))
    for name, title in ((names.REWARD, "Reward"), (names.KL, "KL to the reference"), (names.LOSS, "Loss")):
        values = finite([row.get(name) for row in run.metrics])
        if values:
            ends = (values[:ENDS], values[-ENDS:])
            tiles.append((title, " → ".join(number(sum(end) / len(end)) for end in ends)))
    if validation := finite([row.get(names.VALIDATION_LOSS) for row in run.metrics]):
        tiles.append(("Best validation loss", number(min(validation))))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    note = f"A → B: means of the first and of the last {ENDS} values."
    return f'<dl class="tiles">{items}</dl><p class="note">{note}</p>'


def _steps(run: RunData) -> str:
    section = run.config.get("ppo", run.config.get("train"))
    planned = section.get("steps") if isinstance(section, dict) else None
    done = run.metrics[-1][names.STEP]
    return f"{done:,} of {planned:,}" if isinstance(planned, int) and planned != done else f"{done:,}"


def _model(run: RunData) -> str:
    model, env = (run.config.get(name) for name in ("model", "environment"))
    new = run.config.get("new", run.config.get("scratch"))
    if run.job == "control" and isinstance(env, dict):
        return f"policy for {env.get('id') or 'an environment'}"
    policy = model.get("policy") if isinstance(model, dict) else ""
    if policy:
        return "/".join(PurePath(str(policy)).parts[-2:])
    if isinstance(new, dict):
        return f"new {new.get('type', 'model')}, {new.get('layers', '?')} × {new.get('hidden', '?')}"
    return "?"
