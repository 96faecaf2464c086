"""The evaluation in the report: a table of metrics by model, and the models' responses side by side."""

from __future__ import annotations

from collections import Counter

from proxlm.evaluation.results import chosen_from_json, confusion_from_json
from proxlm.evaluation.tables import confusion_tables, html_table
from proxlm.report.run_data import Row
from proxlm.runlog.text import number
from proxlm.text import in_html


def evaluation_table(evaluation: Row) -> str:
    """Metric by model: the mean, its interval, and the difference between the last model and the first."""
    models = evaluation["models"]
    names = list(dict.fromkeys(name for model in models for name in model["metrics"]))
    compared = len(models) > 1
    columns = [model["name"] for model in models] + (["difference"] if compared else [])
    head = "".join(f'<th scope="col">{in_html(column)}</th>' for column in columns)
    rows = [_metric_row(name, evaluation, compared) for name in names]
    counts = [f"{evaluation['prompts']} held-out prompts"] if "prompts" in evaluation else []
    counts += [f"seed {evaluation['seed']}"] if "seed" in evaluation else []
    paths = [f"{model['name']}: {model['model']}" for model in models if "model" in model]
    if (best := chosen_from_json(evaluation)) is not None:
        paths.append(best.line())
    return (
        f'<p class="note">{in_html(", ".join(counts))}. Ranges are confidence intervals.</p>'
        f'<div class="wide"><table><thead><tr><th scope="col">metric</th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">{"<br>".join(in_html(path) for path in paths)}</p>'
        + "".join(
            html_table(table)
            for model in models
            for table in confusion_tables(model["name"], confusion_from_json(model))
        )
    )


def _metric_row(name: str, evaluation: Row, compared: bool) -> str:
    values = [model["metrics"].get(name, {}) for model in evaluation["models"]]
    cells = "".join(f"<td>{_interval(value)}</td>" for value in values)
    if compared:
        first, last = (value.get("mean") for value in (values[0], values[-1]))
        known = first is not None and last is not None
        cells += f"<td>{_signed(last - first) if known else '–'}</td>"
    description = evaluation.get("metrics", {}).get(name, "")
    about = f"<small>{in_html(description)}</small>" if description else ""
    return f'<tr><th scope="row">{in_html(name)}{about}</th>{cells}<td>{_whiskers(values)}</td></tr>'


def _interval(value: Row) -> str:
    if value.get("mean") is None:
        return "–"
    bounds = (
        f"<small>{number(value['low'])} to {number(value['high'])}</small>" if _has_interval(value) else ""
    )
    return f"<b>{number(value['mean'])}</b>{bounds}"


def _has_interval(value: Row) -> bool:
    """Metrics of all responses together, without an interval, have a low and a high that are the mean."""
    low, high = value.get("low"), value.get("high")
    return low is not None and high is not None and low < high


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _whiskers(values: list[Row]) -> str:
    """The intervals on one scale, as a small drawing; nothing where there is none."""
    drawn = [(i, v) for i, v in enumerate(values) if None not in (v.get("mean"), v.get("low"), v.get("high"))]
    if not any(_has_interval(value) for _, value in drawn):
        return ""
    least, most = min(v["low"] for _, v in drawn), max(v["high"] for _, v in drawn)
    scale = 100 / (most - least)
    height = 10 * len(values)
    marks = "".join(
        f'<g class="c{i % 6}"><line x1="{10 + (v["low"] - least) * scale:.1f}" y1="{10 * i + 5}" '
        f'x2="{10 + (v["high"] - least) * scale:.1f}" y2="{10 * i + 5}"/>'
        f'<circle cx="{10 + (v["mean"] - least) * scale:.1f}" cy="{10 * i + 5}" r="3.5"/></g>'
        for i, v in drawn
    )
    size = f'viewBox="0 0 120 {height}" width="120" height="{height}"'
    return f'<svg class="whiskers" {size} aria-hidden="true">{marks}</svg>'


def side_by_side(evaluation: Row) -> str:
    """The models' responses side by side, prompt by prompt; empty where there are none."""
    models = evaluation["models"]
    by_prompt: dict[tuple[str, int], list[Row | None]] = {}
    for i, model in enumerate(models):
        seen: Counter[str] = Counter()
        for sample in model.get("samples", []):
            prompt = str(sample.get("prompt_id", sample["prompt"]))
            by_prompt.setdefault((prompt, seen[prompt]), [None] * len(models))[i] = sample
            seen[prompt] += 1
    articles = []
    for samples in by_prompt.values():
        prompt = next(sample["prompt"] for sample in samples if sample)
        texts = "".join(_response(model["name"], s) for model, s in zip(models, samples, strict=True))
        articles.append(
            f'<article class="card"><div class="text prompt">{in_html(prompt)}</div>'
            f'<div class="sides">{texts}</div></article>'
        )
    return "".join(articles)


def _response(name: str, sample: Row | None) -> str:
    if sample is None:
        return (
            f'<div class="side"><h4>{in_html(name)}</h4><p class="note">no response to this prompt</p></div>'
        )
    reward = sample.get("reward")
    badge = f'<span class="badge">reward {number(reward)}</span>' if reward is not None else ""
    return (
        f'<div class="side"><h4>{in_html(name)} {badge}</h4>'
        f'<div class="text">{in_html(sample["response"])}</div></div>'
    )
