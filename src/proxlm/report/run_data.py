"""A run's folder as the report reads it: every file checked, every problem named with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from proxlm.config.from_run import kept_models
from proxlm.errors import RunError
from proxlm.runlog.folder import read_jsonl
from proxlm.runlog.rows import LARGEST_NUMBER
from proxlm.runlog.saved_settings import RunConfig, read_saved_settings, read_text
from proxlm.text import shortened

Row = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """What a run's folder holds.

    Attributes:
        job: the name of the run's job; "run" where config.toml names none.
        config: its settings; None where they are not those of this version.
        samples: rows of samples.jsonl; empty where there are none.
        evaluation: what evaluation.json holds; None where there is none.
        best: the step whose model is kept as the best so far; None where none is.
    """

    name: str
    job: str
    config: RunConfig | None
    config_text: str
    metrics: list[Row]
    samples: list[Row]
    evaluation: Row | None
    best: int | None = None


# A table has a column for each.
MOST_MODELS = 100
MOST_METRICS = 2000


def read_run(folder: Path) -> RunData:
    """Read a run's folder. Raises RunError that names the file, and the line or field, that is not right."""
    saved = read_saved_settings(folder)
    samples, evaluation = folder / "samples.jsonl", folder / "evaluation.json"
    return RunData(
        name=folder.resolve().name,
        job=saved.job or "run",
        config=saved.config,
        config_text=saved.text,
        metrics=read_metrics(folder / "metrics.jsonl"),
        samples=read_samples(samples) if samples.exists() else [],
        evaluation=read_evaluation(evaluation) if evaluation.exists() else None,
        best=_best_step(folder),
    )


def _best_step(folder: Path) -> int | None:
    steps = [path.name.removeprefix("step-") for path in kept_models(folder)]
    return int(steps[-1]) if steps and steps[-1].isdecimal() else None


def read_metrics(path: Path) -> list[Row]:
    """A run's rows, checked; a torn last line is left out. Raises RunError, also where there is no row yet."""
    rows = read_jsonl(path)
    if not rows:
        raise RunError(f"{path}: no rows: the run has not finished a step yet")
    known = set[str]()
    for line, row in enumerate(rows, start=1):
        where = f"{path}: line {line}"
        known.update(row)
        if len(known) > MOST_METRICS:
            raise RunError(f"{where}: more than {MOST_METRICS:,} different metrics up to here")
        for name, value in row.items():
            if value is not None and not _is_number(value):
                raise RunError(f"{where}: {name}: expected a number, got {_shown(value)}")
        for name in ("step", "time"):
            if row.get(name) is None:
                raise RunError(f"{where}: {name}: missing")
    return rows


def read_samples(path: Path) -> list[Row]:
    """A run's sampled texts, checked. Raises RunError."""
    rows = read_jsonl(path)
    for line, row in enumerate(rows, start=1):
        where = f"{path}: line {line}"
        if not _is_number(row.get("step")):
            raise RunError(f"{where}: step: expected a number, got {_shown(row.get('step'))}")
        _check_texts(where, row)
        _check_numbers(f"{where}: components", row.get("components", {}))
        _check_tokens(where, row.get("tokens", []), row.get("per_token", {}))
    return rows


def _check_texts(where: str, row: Row) -> None:
    """What every sampled text has."""
    for name in ("prompt", "response"):
        if not isinstance(row.get(name), str):
            raise RunError(f"{where}: {name}: expected a text, got {_shown(row.get(name))}")
    if row.get("reward") is not None and not _is_number(row["reward"]):
        raise RunError(f"{where}: reward: expected a number, got {_shown(row['reward'])}")


def _check_numbers(where: str, table: Any) -> None:
    if not isinstance(table, Mapping):
        raise RunError(f"{where}: expected an object, got {_shown(table)}")
    for name, value in table.items():
        if value is not None and not _is_number(value):
            raise RunError(f"{where}: {name}: expected a number, got {_shown(value)}")


def _check_tokens(where: str, tokens: Any, per_token: Any) -> None:
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise RunError(f"{where}: tokens: expected a list of texts, got {_shown(tokens)}")
    if not isinstance(per_token, dict):
        raise RunError(f"{where}: per_token: expected an object, got {_shown(per_token)}")
    for name, values in per_token.items():
        if not isinstance(values, list) or len(values) != len(tokens):
            problem = f"expected {len(tokens)} numbers, one a token, got {_shown(values)}"
            raise RunError(f"{where}: per_token: {name}: {problem}")
        for value in values:
            if value is not None and not _is_number(value):
                raise RunError(f"{where}: per_token: {name}: expected a number, got {_shown(value)}")


def read_evaluation(path: Path) -> Row:
    """What a run's evaluation.json holds, checked. Raises RunError that names the place."""
    try:
        value = json.loads(read_text(path), parse_constant=_not_json)
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: expected an object, got {_shown(value)}")
    if not isinstance(value.get("metrics", {}), dict):
        raise RunError(f"{path}: metrics: expected an object, got {_shown(value['metrics'])}")
    models = value.get("models")
    if not isinstance(models, list) or not models:
        raise RunError(f"{path}: models: expected a list of models, got {_shown(models)}")
    if len(models) > MOST_MODELS:
        raise RunError(f"{path}: models: {len(models)} of them; a page has room for {MOST_MODELS}")
    for i, model in enumerate(models):
        _check_model(f"{path}: models[{i}]", model)
    if "best" in value:
        _check_best(f"{path}: best", value["best"])
    return value


def _check_best(where: str, best: Any) -> None:
    """What says by which metric the evaluation "best" was chosen."""
    kinds = {
        "step": "a number",
        "value": "a number",
        "metric": "a text",
        "best_is": "a text",
        "model": "a text",
    }
    if not isinstance(best, dict) or best.keys() != kinds.keys():
        raise RunError(f"{where}: expected an object with {', '.join(kinds)}, got {_shown(best)}")
    for name, kind in kinds.items():
        right = _is_number(best[name]) if kind == "a number" else isinstance(best[name], str)
        if not right or (name == "step" and not isinstance(best[name], int)):
            raise RunError(f"{where}: {name}: expected {kind}, got {_shown(best[name])}")


def _check_model(where: str, model: Any) -> None:
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise RunError(f"{where}: expected an object with a name, got {_shown(model)}")
    metrics = model.get("metrics")
    if not isinstance(metrics, dict):
        raise RunError(f"{where}: metrics: expected an object, got {_shown(metrics)}")
    for name, metric in metrics.items():
        if not isinstance(metric, dict) or "mean" not in metric:
            raise RunError(f"{where}: metrics: {name}: expected an object with a mean, got {_shown(metric)}")
        _check_numbers(f"{where}: metrics: {name}", metric)
    samples = model.get("samples", [])
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise RunError(f"{where}: samples: expected a list of objects, got {_shown(samples)}")
    for i, sample in enumerate(samples):
        _check_texts(f"{where}: samples[{i}]", sample)
    confusion = model.get("confusion", {})
    if not isinstance(confusion, dict) or not all(map(_is_confusion, confusion.values())):
        raise RunError(
            f"{where}: confusion: expected labels and as many rows of counts, got {_shown(confusion)}"
        )


def _is_confusion(value: Any) -> bool:
    """Whether a value is K labels with K rows of K + 1 counts."""
    if not isinstance(value, dict) or set(value) != {"labels", "counts"}:
        return False
    labels, counts = value["labels"], value["counts"]
    return (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and isinstance(counts, list)
        and len(counts) == len(labels)
        and all(isinstance(row, list) and len(row) == len(labels) + 1 for row in counts)
        and all(_is_number(count) for row in counts for count in row)
    )


def finite(values: Sequence[Any]) -> list[float]:
    """The numbers among `values`, which are numbers and None."""
    return [value for value in values if value is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return shortened(json.dumps(value), 60)


def _not_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
