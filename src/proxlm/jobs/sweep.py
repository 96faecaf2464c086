"""`proxlm sweep`: every combination of some settings, each with several seeds, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from proxlm.config import to_toml
from proxlm.config.arguments import read_arguments
from proxlm.config.paths import absolute
from proxlm.config.recipe import settings_of_recipe
from proxlm.config.search import SweepConfig
from proxlm.config.toml_text import parse_toml
from proxlm.config.values import dotted
from proxlm.errors import ConfigError
from proxlm.evaluation import tables
from proxlm.jobs.startup import start_job
from proxlm.jobs.trained_runs import (
    in_no_folder,
    numbers_of,
    saying_how_to_go_on,
    trained,
    trainer_of,
)
from proxlm.jobs.workers import run_workers
from proxlm.runlog.folder import begin_folder, free_name, write_atomic, write_json_atomic
from proxlm.search.objective import objectives
from proxlm.search.space import Space, space_of
from proxlm.search.sweep import Sweep, as_json, sweep_table
from proxlm.text import shown
from proxlm.train.common.callbacks import Callback

PLAN, RESULTS, TABLE = "sweep.json", "results.json", "sweep.md"


def main(config: SweepConfig, recipe: Any) -> None:
    """Train the combinations that are left, and print the table of all."""
    sweep = _prepared(config, recipe)
    names = [config.objective] if config.objective else []
    (objective,) = objectives(config.command, names, [], sweep.base)
    start_job(sweep.base.run.threads, getattr(sweep.base, "model", None))
    with saying_how_to_go_on("sweep", config, sweep.folder):
        if config.workers > 1:
            run_workers(_work, replace(config, folder=str(sweep.folder)), config.workers)
        sweep.work()
    table = sweep_table(sweep, objective)
    write_json_atomic(sweep.folder / RESULTS, {"job": config.command, "combinations": as_json(sweep)})
    write_atomic(sweep.folder / TABLE, tables.as_markdown([table]))
    print(f"\n{tables.as_text([table])}\n\nwritten to {sweep.folder / RESULTS} and {TABLE} beside it")


def _prepared(config: SweepConfig, recipe: Any) -> Sweep:
    """The sweep in its folder, checked before anything is trained."""
    base = in_no_folder(recipe, "runs of the sweep")
    space = space_over(config.over, base)
    folder = Path(config.folder) if config.folder else free_name("sweep")

    def train(settings: Any, callbacks: Sequence[Callback]) -> Mapping[str, float]:
        return numbers_of(trained(trainer_of(config.command), settings, callbacks))

    sweep = Sweep(base, space, config.seeds, folder, train)
    plan = {
        "job": config.command,
        "over": [asdict(one) for one in space],
        "settings": to_toml(absolute(base)),
    }
    begin_folder(folder, PLAN, plan)
    return sweep


def _work(config: SweepConfig) -> None:
    """What a worker process does."""
    sweep = _prepared(config, settings_of_recipe(config))
    start_job(sweep.base.run.threads, getattr(sweep.base, "model", None))
    sweep.work()


def space_over(over: Sequence[str], base: Any) -> Space:
    """The space of KEY=V1,V2,… options; KEY+KEY=… gives several keys the same value. Raises ConfigError."""
    table: dict[str, Any] = {}
    for one in over:
        names, equals, texts = one.partition("=")
        if not equals or not texts:
            raise ConfigError(f'over = "{shown(one)}": write section.key=VALUE,VALUE')
        key, *also = (_spelled(name, base) for name in names.split("+"))
        if key in table:
            raise ConfigError(f"over: {key}: given twice")
        table[key] = {"choices": [_value(key, text, base) for text in _texts(texts)], "also": also}
    return space_of(table, base, "over")


def _texts(texts: str) -> list[Any]:
    """The values of an option: a TOML list, or texts between commas."""
    if texts.startswith("["):
        try:
            return list(parse_toml(f"values = {texts}")["values"])
        except ValueError as error:
            raise ConfigError(f"over: {shown(texts)}: not a TOML list: {shown(str(error), 100)}") from None
    return texts.split(",")


def _spelled(name: str, base: Any) -> str:
    """A key as it is spelled in the settings. Raises ConfigError for one that there is not."""
    ((key, _),) = read_arguments(type(base), [f"--{name.strip()}=0"])[1].items()
    return dotted(key)


def _value(key: str, text: Any, base: Any) -> Any:
    """A value from its text, as on the command line."""
    if not isinstance(text, str):
        return text
    (value,) = read_arguments(type(base), [f"--{key}={text.strip()}"])[1].values()
    return value
