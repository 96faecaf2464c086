"""PPO, GRPO, RLOO and REINFORCE++ on five tasks, at equal tokens and at equal seconds, learning rates tuned equally.

    python benchmarks/algorithms.py OUTPUT_FOLDER [--tasks stories chat] [--algorithms PPO GRPO] [--jobs 2]

Makes each task's model once, tries the same learning rates for every algorithm on a seed that is not used again (and
one more rate where the best lies at the edge), and runs three seeds with the best. A run has one thread; --jobs of
them run at once. Given again, the command continues: a finished run is not run again. Writes algorithms.json and
benchmark.md with a picture for each task into the folder; --page puts tables and pictures into a page, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from algorithm_numbers import best_rate, curve_of, rate_beyond
from algorithm_page import write_pages
from algorithm_tasks import TASKS, Task, measured_spread

from proxlm import RunError, load_config
from proxlm.jobs import ppo
from proxlm.runlog.folder import read_jsonl, write_json_atomic

TUNING_SEED, SEEDS = 100, (0, 1, 2)
ALGORITHMS: dict[str, dict[str, Any]] = {
    "PPO": {"ppo.advantage": "gae"},
    "GRPO": {"ppo.advantage": "grpo", "ppo.kl_in": "loss", "ppo.kl_estimator": "k3"},
    "RLOO": {"ppo.advantage": "rloo"},
    "REINFORCE++": {"ppo.advantage": "reinforce++"},
}
GROUPED = ("GRPO", "RLOO")
# What a run leaves that nobody reads again.
HEAVY = ("checkpoints", "policy", "samples.jsonl", "tensorboard")
Run = dict[str, Any]


def settings_of(task: Task, algorithm: str, spread: float) -> dict[str, Any]:
    """What an algorithm sets on a task: how its responses are dealt out, and how it takes the KL.

    GRPO divides its rewards by their spread in a group and not its KL, which is in the loss. So its β is divided by
    the spread that the model has at the start: a nat then costs as much reward as with the others.
    """
    group = task.group if algorithm in GROUPED else 1
    found = {
        **task.shared_settings(),
        "ppo.batch_size": task.responses // group,
        "ppo.samples_per_prompt": group,
        **ALGORITHMS[algorithm],
    }
    if algorithm == "GRPO":
        found["ppo.kl_coef"] = float(f"{task.beta / spread:.3g}")
    return found


def one_run(task_name: str, recipe: str, settings: dict[str, Any], folder: Path) -> Run:
    """One run of the training, unless its folder holds the result; the result."""
    file, task = folder / "result.json", TASKS[task_name]
    if file.exists():
        found: Run = json.loads(file.read_text(encoding="utf-8"))
        if found["settings"] != json.loads(json.dumps(settings)):
            raise SystemExit(f"{file}: made with other settings; remove the folder, or choose another one")
        return found
    shutil.rmtree(folder, ignore_errors=True)  # of a run that did not come to its end
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    try:
        with log.open("w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
            ppo.main(load_config("ppo", recipe, {**settings, "run.folder": str(folder)}))
        result = result_of(folder, task)
    except RunError as error:  # a rate that is too high: updates that are not finite
        folder.mkdir(parents=True, exist_ok=True)
        result = {"failed": str(error)}
    for name in HEAVY:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    write_json_atomic(file, {"settings": settings, **result})
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def result_of(folder: Path, task: Task) -> Run:
    """What is kept of a run: its curve, its last evaluation, and each held-out prompt's numbers."""
    rows = read_jsonl(folder / "metrics.jsonl")
    if len(rows) < task.steps:
        raise SystemExit(f"{folder}: stopped after {len(rows)} of {task.steps} steps")
    models = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    by_name = {model["name"]: model["metrics"] for model in models}
    before = {name: estimate["mean"] for name, estimate in by_name["before"].items()}
    prompts = {
        str(row["prompt_id"]): {
            "objective": row["reward"] - task.beta * row["kl"],
            "reward": row["reward"],
            "greedy": row["greedy"]["reward"],
        }
        for row in read_jsonl(folder / "evaluation-after.jsonl")
    }
    return {
        "curve": [point._asdict() for point in curve_of(rows, before, task.responses, task.beta)],
        "after": by_name["after"],
        "prompts": prompts,
    }


def prepared(name: str, output: Path) -> dict[str, Any]:
    """A task's recipe, model and spread, made once."""
    file = output / name / "prepared.json"
    if not file.exists():
        folder = output / name / "base"
        folder.mkdir(parents=True, exist_ok=True)
        with (
            (output / name / "prepare.log").open("w", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
        ):
            made = TASKS[name].prepare(folder)
            once = output / name / "spread"
            shutil.rmtree(once, ignore_errors=True)
            spread = measured_spread(TASKS[name], made, once)
            shutil.rmtree(once)
        write_json_atomic(file, {**made._asdict(), "spread": spread})
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def objective(run: Run) -> float:
    """The held-out reward − β · KL at a run's end; −∞ where the run failed."""
    return -math.inf if "failed" in run else float(run["curve"][-1]["objective"])


def tuned_and_run(
    rates: Sequence[float], extend: bool, start: Callable[[float, int], Future[Run]]
) -> tuple[dict[float, float], float, list[Run]]:
    """Objectives by rate on the tuning seed, the best rate, and the runs of the seeds with it.

    Args:
        rates: Tried first.
        extend: Try one more where the best lies at the edge.
        start: Starts a run with a rate and a seed.
    """
    tuning = {rate: start(rate, TUNING_SEED) for rate in rates}
    found = {rate: objective(future.result()) for rate, future in tuning.items()}
    beyond = rate_beyond(list(found), best_rate(found)) if extend else None
    if beyond is not None:
        found[beyond] = objective(start(beyond, TUNING_SEED).result())
    best = best_rate(found)
    futures = [start(best, seed) for seed in SEEDS]
    return found, best, [future.result() for future in futures]


Launch = Callable[[str, str, dict[str, Any], Path], Future[Run]]
"""`one_run` in a process of its own, or what it has left."""


class UnfinishedError(Exception):
    """A run that nobody has finished is not there to be shown."""


def finished(task_name: str, recipe: str, settings: dict[str, Any], folder: Path) -> Future[Run]:
    """A finished run's result; nothing is started."""
    future: Future[Run] = Future()
    if (folder / "result.json").exists():
        future.set_result(one_run(task_name, recipe, settings, folder))
    else:
        future.set_exception(UnfinishedError(str(folder)))
    return future


def measure(
    name: str, algorithms: Sequence[str], output: Path, base: dict[str, Any], launch: Launch
) -> dict[str, Any]:
    """All runs of one task; of the algorithms that `launch` has runs of."""
    task = TASKS[name]
    often = math.ceil(task.steps / task.evaluations)

    def starter(algorithm: str) -> Callable[[float, int], Future[Run]]:
        def start(rate: float, seed: int) -> Future[Run]:
            settings = {
                **settings_of(task, algorithm, base["spread"]),
                **base["settings"],
                "evaluation.every": often if seed in SEEDS else task.steps,
                "run.keep_best": "none",  # it would be evaluated once more
                "optim.policy.lr": rate,
                "run.seed": seed,
            }
            folder = output / name / f"{algorithm.lower()}-{rate:g}-{seed}"
            return launch(name, base["recipe"], settings, folder)

        return start

    with ThreadPoolExecutor(len(algorithms)) as threads:
        futures = {a: threads.submit(tuned_and_run, task.rates, task.extend, starter(a)) for a in algorithms}
    results = {a: f.result() for a, f in futures.items() if not isinstance(f.exception(), UnfinishedError)}
    return {
        "spread": base["spread"],
        "beta": task.beta,
        "tuning": {
            a: {f"{rate:g}": value for rate, value in tuning.items()} for a, (tuning, _, _) in results.items()
        },
        "chosen": {a: best for a, (_, best, _) in results.items()},
        "seeds": {a: runs for a, (_, _, runs) in results.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument(
        "--page", type=Path, help="a page with the two marks, for the tables and pictures as well"
    )
    parser.add_argument(
        "--finished", action="store_true", help="start nothing: the tables of what has been finished"
    )
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    if given.finished:
        for name in given.tasks:
            if (given.output / name / "prepared.json").exists():
                base = prepared(name, given.output)
                measured = measure(name, given.algorithms, given.output, base, finished)
                found |= {name: measured} if measured["seeds"] else {}
        write_pages(found, given.output, given.page)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        try:
            bases = {name: pool.submit(prepared, name, given.output) for name in given.tasks}
            for name in given.tasks:
                launch = partial(pool.submit, one_run)
                found[name] = measure(name, given.algorithms, given.output, bases[name].result(), launch)
                write_pages(found, given.output, given.page)
                print(f"{name}: done", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
