"""`proxlm search`: trials in a space of settings, the best of them, and which settings mattered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

from proxlm.config import settings_or_default, to_toml, validate
from proxlm.config.from_run import IN_MEMORY
from proxlm.config.parse import job_name
from proxlm.config.paths import absolute
from proxlm.config.recipe import settings_of_recipe
from proxlm.config.search import SearchConfig, TrainingCommand
from proxlm.config.signature import checked
from proxlm.config.values import shown_value
from proxlm.errors import ConfigError
from proxlm.jobs.startup import start_job
from proxlm.jobs.trained_runs import (
    MakeTrainer,
    in_no_folder,
    numbers_of,
    saying_how_to_go_on,
    trained,
    trainer_of,
)
from proxlm.jobs.workers import run_workers
from proxlm.runlog.folder import begin_folder, free_name, write_atomic
from proxlm.search.confirm import confirmed
from proxlm.search.page import search_page
from proxlm.search.points import refusals
from proxlm.search.ready_spaces import ready_space
from proxlm.search.results import PAGE, SearchResults, results_of, summary, write_results
from proxlm.search.search import Search
from proxlm.search.space import Space, read_space, space_of
from proxlm.train.common.callbacks import Callback

PLAN = "search.json"
# What may change when a search goes on: how much is done, not what.
_FREE = ("folder", "trials", "workers", "confirm", "confirm_best", "recipe", "set", "space")


def main(config: SearchConfig, recipe: Any) -> None:
    """Run the trials that are left, and print what all of them have found."""
    search = _of_recipe(config, recipe)
    start_job(search.base.run.threads, getattr(search.base, "model", None))
    with saying_how_to_go_on("search", config, search.folder):
        if config.workers > 1:
            run_workers(_work, replace(config, folder=str(search.folder)), config.workers)
        print(summary(search, _searched(search)))


def _work(config: SearchConfig) -> None:
    """What a worker process does."""
    search = _of_recipe(config, settings_of_recipe(config))
    start_job(search.base.run.threads, getattr(search.base, "model", None))
    search.work()


@checked("base", "config")
def search_settings(
    base: Any,
    space: Mapping[str, Any] | str | Path,
    config: SearchConfig | None = None,
    trainer: Callable[..., Any] | None = None,
) -> SearchResults:
    """Search a job's settings, as `proxlm search` does; the same call goes on with a search in its folder.

    Args:
        base: The job's settings, `PPOConfig(...)` for instance, or of `load_config`.
        space: What is searched: {"optim.policy.lr": {"low": 1e-5, "high": 1e-3, "log": True}, "ppo.epochs": [1, 4]},
            a TOML file of that, or the name of a ready space.
        config: How: sampler, trials, objective, folder. Its command, recipe, set and space are not used.
        trainer: A function (settings, callbacks) → trainer, where the settings do not say everything: a reward that
            is a function, for instance. A loaded model would go on learning from trial to trial: pass a folder.

    Returns:
        The trials, the best of them, and which settings mattered; files and search.html are in the folder.

    Raises:
        UserError: optuna is not installed, a setting or the space is wrong, or the first trials have all failed.
    """
    config = settings_or_default(SearchConfig, config)
    job = job_name(type(base))
    if job not in get_args(TrainingCommand):
        known = f"expected the settings of a job that trains, such as PPOConfig, got {shown_value(base)}"
        raise ConfigError(f"base: {known}")
    if trainer is not None and config.workers > 1:
        raise ConfigError("workers: a trainer of your own cannot be sent to other processes; set it to 1")
    name = str(space) if isinstance(space, str | Path) else IN_MEMORY
    config = validate(
        replace(config, command=cast("TrainingCommand", job), recipe=IN_MEMORY, set=[], space=name)
    )
    base = validate(replace(base, run=replace(base.run, folder="", resume=False)))
    return _searched(_begun(base, space, config, trainer or trainer_of(job)))


def _of_recipe(config: SearchConfig, recipe: Any) -> Search:
    base = in_no_folder(recipe, "trials")
    return _begun(base, config.space, config, trainer_of(config.command))


def _begun(
    base: Any, given: Mapping[str, Any] | str | Path, config: SearchConfig, make: MakeTrainer
) -> Search:
    """The search in its folder, checked before anything is trained."""
    table = given if isinstance(given, Mapping) else ready_space(str(given), base)
    space = read_space(Path(str(given)), base) if table is None else space_of(table, base)
    for line in refusals(base, space):
        print(f"note: {line}", flush=True)
    folder = Path(config.folder) if config.folder else free_name("search")

    def train(settings: Any, callbacks: Sequence[Callback]) -> Mapping[str, float]:
        return numbers_of(trained(make, settings, callbacks))

    search = Search(base, space, config, folder, train)
    begin_folder(folder, PLAN, _plan(base, space, config))
    for line in search.notes():
        print(f"note: {line}", flush=True)
    return search


def _plan(base: Any, space: Space, config: SearchConfig) -> dict[str, Any]:
    fixed = {key: value for key, value in asdict(config).items() if key not in _FREE}
    settings = to_toml(absolute(base))
    return {"search": fixed, "space": [asdict(one) for one in space], "settings": settings}


def _searched(search: Search) -> SearchResults:
    """Run the trials that are left, confirm the best, and write what all of them have found."""
    search.work()
    found = results_of(search, confirmed(search))
    write_results(search, found)
    write_atomic(search.folder / PAGE, search_page(search, found))
    return found
