"""`proxlm folds`: k-fold cross-validation of a recipe."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any

from proxlm.config import FoldsConfig, PPOConfig, TextSettings, to_toml
from proxlm.config.mixture import is_mixture
from proxlm.config.paths import absolute
from proxlm.data.folds import parts_of, write_records
from proxlm.errors import ConfigError, StoppedBySignalError
from proxlm.evaluation import tables
from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.evaluation.tables import Table
from proxlm.jobs.startup import start_job
from proxlm.jobs.trained_runs import held_out_numbers, in_no_folder, trained, trainer_of
from proxlm.runlog.folder import begin_folder, free_name, write_atomic, write_json_atomic
from proxlm.runlog.interrupt import SIGNAL_NAMES
from proxlm.runlog.metric_names import GREEDY, METRICS, SHARE
from proxlm.runlog.text import number

# What a folder of folds belongs to, and what each fold has found.
PLAN, RESULTS = "folds.json", "results.json"
_NOTES = (
    "(held-out numbers of each fold; interval: Student's t over the folds at 95%. The folds share most of their",
    "training records, so they are not independent and the interval tends to be too narrow: no unbiased estimate of",
    "this variance exists, Bengio and Grandvalet 2004. It is about the recipe on such records, not about one model.)",
)


def main(config: FoldsConfig, recipe: Any) -> None:
    """Train every fold that is not finished, and print the table of their held-out numbers."""
    base = job_settings(recipe)
    start_job(base.run.threads, base.model)
    folder = Path(config.folder) if config.folder else free_name("folds")
    parts = parts_of(base, config.k, config.seed)
    _begin(folder, config, base, parts)
    found = [_fold(i, folder, config, base, parts) for i in range(config.k)]
    table = fold_table(found)
    print(f"\n{tables.as_text([table])}")
    write_json_atomic(
        folder / RESULTS,
        {
            "job": config.command,
            "k": config.k,
            "seed": config.seed,
            "folds": found,
            "metrics": {name: asdict(over) for name, over in over_folds(found).items()},
        },
    )
    write_atomic(folder / "folds.md", tables.as_markdown([table]))
    print(f"\nwritten to {folder / RESULTS} and folds.md beside it")


def job_settings(recipe: Any) -> Any:
    """The settings of the recipe's job, for all folds.

    Raises:
        ConfigError: There are no records to split.
    """
    base = in_no_folder(recipe, "folds")
    if isinstance(base, PPOConfig):
        if base.environment.use and not base.data.prompts:
            raise ConfigError(
                "environment.use: its tasks are no records that could be split; give data.prompts"
            )
        used = ("data.eval_prompts", base.data.eval_prompts)
    else:
        used = ("text.validation", base.text.validation)
        if isinstance(base.text, TextSettings) and is_mixture(base.text):
            raise ConfigError(
                "text.weights, text.temperature: the parts of folds are one source; leave them out"
            )
    if used[1]:
        print(
            f"note: {used[0]} is not used: each part of the training records is held out in turn", flush=True
        )
    return base


@dataclass(frozen=True)
class OverFolds:
    """A metric over the folds: mean, sample standard deviation, and Student's 95% interval of the mean."""

    mean: float
    std: float
    low: float
    high: float


def over_folds(found: Sequence[Mapping[str, float]]) -> dict[str, OverFolds]:
    """Every metric that all folds have."""
    over = {}
    for name in [name for name in found[0] if all(name in fold for fold in found)]:
        values = [fold[name] for fold in found]
        mean = _within_bounds(name, mean_with_interval(values))
        over[name] = OverFolds(mean.mean, statistics.stdev(values), mean.low, mean.high)
    return over


def fold_table(found: Sequence[Mapping[str, float]]) -> Table:
    """A row for each metric that all folds have: the folds, mean, deviation and interval."""
    head = ["metric", *(f"fold {i + 1}" for i in range(len(found))), "mean", "std", "95% interval"]
    rows = []
    for name, over in over_folds(found).items():
        cells = [*(number(fold[name]) for fold in found), number(over.mean), number(over.std)]
        rows.append([name, *cells, f"{number(over.low)} to {number(over.high)}"])
    return Table(head, rows, notes=_NOTES)


def _within_bounds(name: str, found: Estimate) -> Estimate:
    """The interval of a share, cut at 0 and 1."""
    known = METRICS.get(name.removeprefix(GREEDY("")))
    if known is None or known.unit != SHARE:
        return found
    return Estimate(found.mean, max(0.0, found.low), min(1.0, found.high))


def _begin(folder: Path, config: FoldsConfig, base: Any, parts: Sequence[Sequence[Any]]) -> None:
    """Write the parts, or see that the folder is of the same folds. Raises RunError."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    settings = to_toml(absolute(base))
    plan = {
        "job": config.command,
        "k": config.k,
        "seed": config.seed,
        "records": digest.hexdigest(),
        "settings": settings,
    }
    begin_folder(folder, PLAN, plan)
    (folder / "records").mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        rest = [fields for j, other in enumerate(parts) if j != i for fields in other]
        for file, records in ((_held_out(folder, i), part), (_training(folder, i), rest)):
            if not file.exists():
                write_records(file, records)


def _held_out(folder: Path, i: int) -> Path:
    return folder.resolve() / "records" / f"held-out-{i + 1}.jsonl"


def _training(folder: Path, i: int) -> Path:
    return folder.resolve() / "records" / f"training-{i + 1}.jsonl"


def _fold(
    i: int, folder: Path, config: FoldsConfig, base: Any, parts: Sequence[Sequence[Any]]
) -> dict[str, float]:
    """The numbers of a fold, trained if it is not finished."""
    done = folder / f"fold-{i + 1}.json"
    if done.exists():
        print(f"fold {i + 1} of {config.k}: finished before", flush=True)
        return {
            str(name): float(value) for name, value in json.loads(done.read_text(encoding="utf-8")).items()
        }
    print(
        f"\nfold {i + 1} of {config.k}: {len(parts[i])} of {sum(map(len, parts))} records held out",
        flush=True,
    )
    own = folder / f"fold-{i + 1}"
    run = replace(base.run, folder=str(own))
    training, held_out = str(_training(folder, i)), str(_held_out(folder, i))
    if isinstance(base, PPOConfig):
        data = replace(base.data, prompts=training, eval_prompts=held_out, eval_count=len(parts[i]))
        settings = replace(base, run=run, data=data)
    else:
        settings = replace(base, run=run, text=replace(base.text, train=[training], validation=[held_out]))
    try:
        run_of_fold = trained(trainer_of(config.command), settings)
    except StoppedBySignalError as stopped:
        raise StoppedBySignalError(
            f"stopped by {SIGNAL_NAMES[Signals(stopped.signal)]} in fold {i + 1} of {config.k}; it is kept, go on"
            f" with: {command_of(config, folder)}",
            stopped.signal,
        ) from stopped
    found = held_out_numbers(run_of_fold)
    write_json_atomic(done, found)
    return found


def command_of(config: FoldsConfig, folder: Path) -> str:
    """The command that goes on with the folds in a folder."""
    words = ["proxlm", "folds", config.command, config.recipe, "--folder", str(folder), "--k", str(config.k)]
    words += ["--seed", str(config.seed)] if config.seed else []
    return shlex.join([*words, *(word for one in config.set for word in ("--set", one))])
