"""PPO against one learned reward model and against an ensemble of them, with VADER's sentiment as gold.

    python benchmarks/reward_ensembles.py MODEL_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--comparisons 200] [--jobs 2]

For each seed the model writes two continuations of story openings, and VADER says which one is happier. `proxlm
reward` learns one model from these comparisons, and an ensemble of four from the same ones. Then PPO raises, with no
KL penalty, the score of the one model, the ensemble's mean, and its cautious score (mean − standard deviation), while
VADER is only watched. Numbers are of the held-out openings. A finished run is not run again. Writes
reward_ensembles.json, reward_ensembles.md and reward-ensembles.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from algorithm_numbers import value_at
from compare_runs import Series, svg

from proxlm import load_config
from proxlm.config import RewardSettings
from proxlm.data.prompts import load_prompts
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.evaluation.intervals import Estimate, mean_with_interval
from proxlm.jobs import ppo, reward
from proxlm.models.load import load_language_model
from proxlm.rewards import build_reward
from proxlm.runlog.folder import read_jsonl, write_json_atomic, write_jsonl_atomic
from proxlm.seeds import Stream

RECIPE = Path(__file__).parents[1] / "recipes" / "stories-sentiment.toml"
MODELS = ("ensemble", "one")
MEMBERS, TOKENS, UNSEEN = 4, 24, 200
# Two continuations are compared where their sentiment, from −1 to 1, differs by that much: a reader sees no less.
CLEAR = 0.5
# What PPO raises: the arm's name → the run of `proxlm reward`, and the reward that reads it.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "one model": ("one", {"use": "reward_model"}),
    "ensemble, mean": ("ensemble", {"use": "reward_ensemble", "args.combine": "mean"}),
    "ensemble, cautious": ("ensemble", {"use": "reward_ensemble", "args.combine": "cautious", "args.k": 1.0}),
}
LEVELS = (2.5, 5.0, 10.0, 20.0, 30.0)
Point = dict[str, float]


def written_comparisons(model_folder: str, count: int, seed: int, step: int) -> list[dict[str, str]]:
    """`count` comparisons of two continuations of which one is clearly the happier one."""
    config = load_config("ppo", RECIPE, {"model.policy": model_folder, "rollout.max_new_tokens": TOKENS})
    model = load_language_model(config.model)
    prompts = load_prompts(config.data, model.tokenizer, 256, "train", seed).prompts
    found = list[dict[str, str]]()
    engine, vader = NativeEngine(model, config.rollout), build_reward(RewardSettings(use="sentiment"))
    while len(found) < count:
        asked = [prompt for prompt in prompts for _ in range(2)]
        rollout = generate(engine, asked, config.rollout, seed=seed, step=step, stream=Stream.REFERENCE)
        scores = vader(rollout).total.tolist()
        for i in range(0, len(asked), 2):
            if abs(scores[i] - scores[i + 1]) >= CLEAR:
                better = i if scores[i] > scores[i + 1] else i + 1
                texts = {"chosen": rollout.texts[better], "rejected": rollout.texts[2 * i + 1 - better]}
                found.append({"prompt": asked[i].text, **texts})
        step += 1
    return found[:count]


def ended(job: str, folder: Path, recipe: Path | None, settings: Mapping[str, Any]) -> Path:
    """A run of a job in this process, unless it has been made already."""
    if not (folder / "report.html").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that did not come to its end
        config = load_config(job, recipe, {**settings, "run.folder": str(folder), "run.threads": 1})
        {"ppo": ppo, "reward": reward}[job].main(config)
    return folder


def write_comparisons(given: argparse.Namespace, seed: int) -> None:
    """Write a seed's comparisons to learn from, and others to judge by, unless they are there."""
    below = given.output / str(seed)
    below.mkdir(parents=True, exist_ok=True)
    for name, count, step in (("train", given.comparisons, 0), ("test", UNSEEN, 1000)):
        if not (below / f"{name}.jsonl").exists():
            rows = written_comparisons(given.model, count, seed, step)
            write_jsonl_atomic(below / f"{name}.jsonl", rows)


def trained(given: argparse.Namespace, seed: int, name: str) -> float:
    """Train the one model or the ensemble of a seed; its accuracy on unseen comparisons."""
    below = given.output / str(seed)
    settings = {
        "model.policy": given.model,
        "text.train": [str(below / "train.jsonl")],
        "text.validation_share": 0.2,
        "test.files": [str(below / "test.jsonl")],
        "test.baselines": False,
        "objective.centring": 0.01,
        "ensemble.size": 1 if name == "one" else MEMBERS,
        "train.steps": 42,
        "train.batch_tokens": 2048,
        "train.validate_every": 7,
        "train.patience": 0,
        "optim.lr": 1e-3,
        "optim.warmup": 5,
        "run.seed": seed,
        "run.save_every": 0,
    }
    folder = ended("reward", below / name, None, settings)
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    return float(found[0]["metrics"]["accuracy"]["mean"])


def optimised(given: argparse.Namespace, seed: int, arm: str) -> list[Point]:
    """Raise an arm's score by PPO; the held-out evaluations from the start to the end."""
    name, score = ARMS[arm]
    models = given.output / str(seed) / name / "reward"
    settings = {
        "model.policy": given.model,
        "reward.use": "",
        **{f"reward.terms.proxy.{key}": value for key, value in score.items()},
        "reward.terms.proxy.args.path": str(models),
        "reward.terms.proxy.args.truncate": True,
        "reward.terms.gold.use": "sentiment",
        "reward.terms.gold.weight": 0.0,
        "rollout.max_new_tokens": TOKENS,
        "ppo.steps": given.steps,
        "ppo.batch_size": 64,
        "ppo.minibatches": 1,
        "ppo.epochs": 2,
        "ppo.kl_coef": 0.0,
        "optim.policy.schedule": "constant",
        "optim.policy.lr": 5e-4,
        "evaluation.every": given.every,
        "evaluation.greedy": False,
        "run.seed": seed,
        "run.save_every": 0,
        "run.keep_best": "none",
    }
    folder = ended(
        "ppo", given.output / str(seed) / arm.replace(", ", "-").replace(" ", "-"), RECIPE, settings
    )
    return held_out_points(folder)


def held_out_points(folder: Path) -> list[Point]:
    """Step, KL, gold and proxy of every held-out evaluation of a run."""
    models = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    before = {name: estimate["mean"] for name, estimate in models[0]["metrics"].items()}
    points = [{"step": 0.0, **_measures(before)}]
    for row in read_jsonl(folder / "metrics.jsonl"):
        if "evaluation/reward" in row:
            found = {key.removeprefix("evaluation/"): value for key, value in row.items()}
            points.append({"step": row["step"], **_measures(found)})
    return points


def _measures(found: Mapping[str, float]) -> Point:
    return {"kl": found["kl"], "gold": found["reward/gold"], "proxy": found["reward"]}


def at_kl(points: Sequence[Point], name: str, level: float) -> float:
    """A measure where a run first reaches a KL: linear between two evaluations."""
    reached = list(accumulate((point["kl"] for point in points), max))
    return value_at(reached, [point[name] for point in points], level)


def comparable(runs: Iterable[Sequence[Point]]) -> list[float]:
    """The levels of the KL that all runs reach."""
    farthest = min(max(point["kl"] for point in points) for points in runs)
    return [level for level in LEVELS if level <= farthest]


def differences(seeds: Mapping[str, Any], name: str, level: float) -> dict[str, Estimate]:
    """Of each arm but the first: its measure at a KL less that of the first one, over the seeds, paired."""
    first, *others = ARMS
    return {
        arm: mean_with_interval(
            [
                at_kl(one["runs"][arm], name, level) - at_kl(one["runs"][first], name, level)
                for one in seeds.values()
            ]
        )
        for arm in others
    }


def table(seeds: Mapping[str, Any]) -> str:
    """Gold at equal KL: the seeds' values of each arm, and the difference to the first arm."""
    levels = comparable(points for one in seeds.values() for points in one["runs"].values())
    lines = ["| gold at a KL of | " + " | ".join(f"{level:g}" for level in levels) + " | at the end (KL) |"]
    lines.append("| --- |" + " --- |" * (len(levels) + 1))
    for arm in ARMS:
        runs = [one["runs"][arm] for one in seeds.values()]
        cells = [", ".join(f"{at_kl(points, 'gold', level):.2f}" for points in runs) for level in levels]
        cells.append(", ".join(f"{points[-1]['gold']:.2f} ({points[-1]['kl']:.0f})" for points in runs))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    by_level = {level: differences(seeds, "gold", level) for level in levels}
    for arm in list(ARMS)[1:]:
        cells = [signed(by_level[level][arm]) for level in levels]
        lines.append(f"| {arm}, less one model | " + " | ".join(cells) + " | |")
    return "\n".join(lines).replace("-0.", "−0.") + "\n"


def signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.2f} ± {(estimate.high - estimate.low) / 2:.2f}"


def picture(seeds: Mapping[str, Any]) -> str:
    """Gold and proxy against √KL, a line per arm: the mean of the seeds where all of them have come."""
    panels = []
    for name, title in (
        ("gold", "gold (VADER) against √KL"),
        ("proxy", "the score that PPO raises, against √KL"),
    ):
        series: dict[str, Series] = {}
        for arm in ARMS:
            runs = [one["runs"][arm] for one in seeds.values()]
            farthest = min(math.sqrt(max(point["kl"] for point in points)) for points in runs)
            places = [farthest * i / 60 for i in range(61)]
            series[arm] = [
                (place, sum(at_kl(points, name, place**2) for points in runs) / len(runs)) for place in places
            ]
        panels.append((title, series))
    return svg(panels, list(ARMS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=4, help="steps between two held-out evaluations")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    given = parser.parse_args()
    told = {name: getattr(given, name) for name in ("comparisons", "steps", "every")}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        list(pool.map(partial(write_comparisons, given), given.seeds))
        models = {s: {name: pool.submit(trained, given, s, name) for name in MODELS} for s in given.seeds}
        accuracy = {s: {name: one.result() for name, one in own.items()} for s, own in models.items()}
        runs = {s: {arm: pool.submit(optimised, given, s, arm) for arm in ARMS} for s in given.seeds}
        seeds = {
            str(s): {"accuracy": accuracy[s], "runs": {arm: run.result() for arm, run in own.items()}}
            for s, own in runs.items()
        }
    write_json_atomic(given.output / "reward_ensembles.json", {**told, "members": MEMBERS, "seeds": seeds})
    (given.output / "reward-ensembles.svg").write_text(picture(seeds), encoding="utf-8")
    (given.output / "reward_ensembles.md").write_text(table(seeds), encoding="utf-8")
    print(table(seeds))


if __name__ == "__main__":
    main()
