"""Runs that differ in one thing, side by side: the same tokens, seeds and prompts; paired differences over seeds.

    python benchmarks/arms.py OUTPUT_FOLDER [--experiments mask pretrained ...] [--seeds 0 1 2] [--jobs 1]

The table of experiments is arms_experiments.py. An arm that is tuned tries the same rates as the others, on a seed
that is not used again. A finished run is not run again. Writes benchmarks/results/arms.json and arms.md, in which
experiments that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms_experiments import EXPERIMENTS, Settings

from jobs import after
from proxlm import load_config
from proxlm.config import ValueConfig
from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.jobs import ppo, value
from proxlm.runlog.folder import read_jsonl

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "recipes"
TUNING_SEED = 100
# `proxlm value` has other random numbers than the run that its critic is for.
CRITIC_SEEDS = 1000
LATE_STEPS = 5
# What is compared, in the order of the tables.
COMPARED = {
    "reward": "held-out reward, sampled",
    "greedy/reward": "greedy",
    "kl": "KL",
    "late": f"reward of the last {LATE_STEPS} steps",
    "all": "of all steps",
}

Row = dict[str, Any]
Numbers = dict[str, float]


def numbers_of(rows: Sequence[Row], held_out: Numbers, watched: Sequence[str], responses: int) -> Numbers:
    """The numbers of a run.

    Args:
        rows: Of metrics.jsonl.
        held_out: The means of the evaluation after training.
        watched: Metrics to average over the first and the last quarter of the steps; absent where a run has none.
        responses: Of a step.
    """
    found = {name: held_out[name] for name in ("reward", "greedy/reward", "kl")}
    found["late"] = statistics.fmean(row["reward"] for row in rows[-LATE_STEPS:])
    found["all"] = statistics.fmean(row["reward"] for row in rows)
    found["steps"] = len(rows)
    found["tokens"] = tokens_of(rows, responses)
    found["seconds"] = rows[-1]["time"]
    quarter = max(1, len(rows) // 4)
    for name in watched:
        for part, some in (("first", rows[:quarter]), ("last", rows[-quarter:])):
            values = [row[name] for row in some if row.get(name) is not None]
            if values:
                found[f"{name}/{part}"] = statistics.fmean(values)
    return found


def tokens_of(rows: Sequence[Row], responses: int) -> float:
    """How many tokens the policy wrote in these steps."""
    return sum(row["response_length"] for row in rows) * responses


def differences(runs: dict[str, list[Numbers]], name: str) -> dict[str, Estimate]:
    """For each arm but the first: the mean over seeds of its number less the first arm's, with its 95% interval.

    Student's t over the seeds, which are paired: the same prompts and random numbers. Rewards of all steps are not
    compared where the numbers of steps differ.
    """
    first, *others = runs
    found = {}
    for arm in others:
        pairs = list(zip(runs[arm], runs[first], strict=True))
        if name != "all" or all(one["steps"] == other["steps"] for one, other in pairs):
            found[arm] = mean_with_interval([one[name] - other[name] for one, other in pairs])
    return found


@dataclass(frozen=True)
class Run:
    """A run of an arm. Each has a folder of its own below `output`; a finished one is not made again."""

    experiment: str
    arm: str
    seed: int
    output: Path
    # Settings that are tuned, and those of the tuning itself.
    more: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        experiment = EXPERIMENTS[self.experiment]
        found = {**experiment.common, **experiment.arms[self.arm], **self.more}
        if experiment.game:
            found["model.policy"] = str(_played(experiment.game, self.output))
        return found

    def numbers(self) -> Numbers:
        """What the run found; its tokens include those that its critic was pretrained on."""
        experiment, settings, before = EXPERIMENTS[self.experiment], self.settings, list[Row]()
        if self.arm in experiment.critics:
            critic = self._critic(settings, experiment.critics[self.arm])
            settings["model.critic_from"] = str(critic / "value")
            before = read_jsonl(critic / "metrics.jsonl")
        folder = self._folder(self.arm, *self.more.values())
        ended = self._job("ppo", folder, settings, self.seed)
        responses = int(settings["ppo.batch_size"]) * int(settings.get("ppo.samples_per_prompt", 1))
        found = numbers_of(read_jsonl(ended / "metrics.jsonl"), after(ended), experiment.watched, responses)
        found["tokens"] += tokens_of(before, responses)
        print(f"{folder}: {json.dumps(found)}", flush=True)
        return found

    def _folder(self, *parts: Any) -> Path:
        return self.output / self.experiment / slug(*parts, self.seed)

    def _critic(self, settings: dict[str, Any], given: Settings) -> Path:
        """The run of `proxlm value` that trains this run's critic."""
        folder = self._folder("critic", *given.values(), *self.more.values())
        return self._job("value", folder, {**settings, **given}, self.seed + CRITIC_SEEDS)

    def _job(self, name: str, folder: Path, settings: dict[str, Any], seed: int) -> Path:
        """Run it in this process, where torch is imported already: half the time of a short run."""
        if not (folder / "report.html").exists():
            recipe = RECIPES / EXPERIMENTS[self.experiment].recipe
            given = {**settings, "run.seed": seed, "run.folder": str(folder)}
            # A recipe is one of proxlm ppo; its settings are those of proxlm value as well.
            config = load_config("ppo", recipe, given)
            value.main(ValueConfig(**vars(config))) if name == "value" else ppo.main(config)
        return folder


def _played(game: str, output: Path) -> Path:
    """A small model that has read random play of a game."""
    from games import read_random_play

    return read_random_play(game, output / "read" / game, 1)


def slug(*parts: Any) -> str:
    """A folder's name."""
    return re.sub(r"[^a-z0-9.-]+", "-", "-".join(map(str, parts)).lower())


def compare(
    name: str, output: Path, seeds: Sequence[int], each: Callable[..., Iterable[Numbers]]
) -> dict[str, Any]:
    """Tune where that is asked, then run every arm with every seed.

    Args:
        name: Of the experiment.
        output: Folder of all runs.
        seeds: Of the runs.
        each: map, or that of a pool of processes.
    """
    experiment, tuned = EXPERIMENTS[name], dict[str, dict[float, float]]()
    chosen: dict[str, dict[str, Any]] = {}
    if experiment.game:
        _played(experiment.game, output)  # before runs that may begin at the same time
    if tuning := experiment.tuning:
        tried = [(arm, rate) for arm in experiment.arms for rate in tuning.rates]
        short = {"ppo.steps": tuning.steps} if tuning.steps else {}
        of_tried = [
            Run(name, arm, TUNING_SEED, output, {**short, tuning.setting: rate}) for arm, rate in tried
        ]
        for (arm, rate), found in zip(tried, each(Run.numbers, of_tried), strict=True):
            tuned.setdefault(arm, {})[rate] = found[tuning.by]
        chosen = {arm: {tuning.setting: max(rates, key=rates.__getitem__)} for arm, rates in tuned.items()}
    runs: dict[str, list[Numbers]] = {arm: [] for arm in experiment.arms}
    final = [Run(name, arm, seed, output, chosen.get(arm, {})) for seed in seeds for arm in experiment.arms]
    for one, found in zip(final, each(Run.numbers, final), strict=True):
        runs[one.arm].append(found)
    rates = {arm: next(iter(setting.values())) for arm, setting in chosen.items()}
    return {"title": experiment.title, "tuned": tuned, "chosen": rates, "seeds": list(seeds), "runs": runs}


def section(found: dict[str, Any], watched: Sequence[str]) -> str:
    """Markdown of one experiment: the numbers of the seeds, then the paired differences to the first arm."""
    runs, chosen = found["runs"], found["chosen"]
    names = [name for name in watched if any(f"{name}/first" in r for rs in runs.values() for r in rs)]
    head = ["arm", *(["rate"] if chosen else []), "tokens", *COMPARED.values(), *names]
    lines = [f"## {found['title']}", "", _row(head), _row(["---"] * len(head))]
    for arm, seeds in runs.items():
        cells = [arm, *([f"{chosen[arm]:g}"] if chosen else [])]
        cells.append(f"{statistics.fmean(r['tokens'] for r in seeds):,.0f}")
        cells += [", ".join(f"{r[key]:.{_digits(key)}f}" for r in seeds) for key in COMPARED]
        cells += [_quarters(seeds, name) for name in names]
        lines.append(_row(cells))
    first = next(iter(runs))
    lines += ["", _row([f"less {first}", *COMPARED.values()]), _row(["---"] * (1 + len(COMPARED)))]
    compared = {key: differences(runs, key) for key in COMPARED}
    for arm in list(runs)[1:]:
        lines.append(_row([arm, *(_difference(compared[key].get(arm), _digits(key)) for key in COMPARED)]))
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(name: str) -> int:
    return 2 if name == "kl" else 3


def _quarters(seeds: Sequence[Numbers], name: str) -> str:
    """Means over seeds of the first and the last quarter of the steps."""
    means = (
        statistics.fmean(values)
        if (values := [r[f"{name}/{part}"] for r in seeds if f"{name}/{part}" in r])
        else math.nan
        for part in ("first", "last")
    )
    return " → ".join("–" if math.isnan(m) else f"{m:.3g}" for m in means)


def _difference(estimate: Estimate | None, digits: int) -> str:
    """Mean and interval, bold where it leaves 0 out."""
    if estimate is None:
        return "–"
    text = f"{estimate.mean:+.{digits}f} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"
    return f"**{text}**" if estimate.low > 0 or estimate.high < 0 else text


HEAD = """# Arms side by side

`python benchmarks/arms.py OUTPUT_FOLDER`; what the arms of each experiment differ in is in
`benchmarks/arms_experiments.py`. A column has a number for each seed: held-out reward and KL (nats per response)
after the last step, and the mean reward of training steps. Metrics of the last columns are means over seeds, of the
first and the last quarter of the steps.
Differences are paired by seed, with the 95% interval of Student's t over the seeds; bold ones leave 0 out.
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """arms.md."""
    known = [name for name in EXPERIMENTS if name in results]
    return "\n".join([HEAD, *(section(results[name], EXPERIMENTS[name].watched) for name in known)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / "arms")
    given = parser.parse_args()
    file = given.results.with_suffix(".json")
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in given.experiments:
        with ExitStack() as stack:
            each: Callable[..., Iterable[Numbers]] = map
            if given.jobs > 1:
                pool = ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn"))
                each = stack.enter_context(pool).map
            results[name] = compare(name, given.output, given.seeds, each)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        given.results.with_suffix(".md").write_text(page(results), encoding="utf-8")
        print(section(results[name], EXPERIMENTS[name].watched), flush=True)


if __name__ == "__main__":
    main()
