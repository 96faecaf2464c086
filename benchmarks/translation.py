"""Chinese → English: a small T5 from pairs, then PPO with chrF, on held-out sentences.

    python benchmarks/translation.py prepare ../shared/data/en-zh/cmn.txt
    proxlm sft recipes/translate-sft.toml
    proxlm ppo recipes/translate-ppo.toml --run.seed S --run.folder runs/translation/ppo-S      (S = 0, 1, 2)
    python benchmarks/translation.py measure benchmarks/results runs/translation/ppo-0 ...

`prepare` writes sft.jsonl (20,000 pairs), rl.jsonl and test.jsonl (a Chinese sentence with all its translations) into
runs/translation; no sentence of either language stands in two of them. `measure` writes translation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from proxlm.config import ModelSettings, RolloutSettings
from proxlm.data.tokenizer import encode_source
from proxlm.engine.generate import generate
from proxlm.engine.native import NativeEngine
from proxlm.evaluation.intervals import mean_with_interval
from proxlm.jobs.startup import start_job
from proxlm.models.load import load_language_model
from proxlm.runlog.folder import write_atomic, write_json_atomic
from proxlm.seeds import Stream
from proxlm.types import Prompt

FOLDER = Path("runs/translation")
PAIRS, TEST, LONGEST = 20_000, 1000, 12
MODES = {"greedy": 0.0, "sampled": 1.0}


def groups_of(path: Path) -> list[list[tuple[str, str]]]:
    """Pairs (Chinese, English) of at most 12 English words; two in different groups share no sentence."""
    pairs: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        english, chinese = line.split("\t")[:2]
        if len(english.split()) <= LONGEST:
            pairs.append((chinese, english))
    parent: dict[str, str] = {}

    def root(x: str) -> str:
        parent.setdefault(x, x)
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for chinese, english in pairs:
        parent[root("zh " + chinese)] = root("en " + english)
    found: dict[str, list[tuple[str, str]]] = {}
    for pair in dict.fromkeys(pairs):
        found.setdefault(root("zh " + pair[0]), []).append(pair)
    return list(found.values())


def prepare(path: Path, folder: Path = FOLDER) -> None:
    """Deal whole groups out, in an order of their own: test, then fine-tuning, and the rest for PPO."""
    groups = groups_of(path)
    random.Random(0).shuffle(groups)
    parts: dict[str, list[list[tuple[str, str]]]] = {"test": [], "sft": [], "rl": []}
    count = {"test": 0, "sft": 0}
    for group in groups:
        sources = len({chinese for chinese, _ in group})
        if count["test"] + sources <= TEST:
            parts["test"].append(group)
            count["test"] += sources
        elif count["sft"] + len(group) <= PAIRS:
            parts["sft"].append(group)
            count["sft"] += len(group)
        else:
            parts["rl"].append(group)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"sft": [{"prompt": zh, "response": en} for group in parts["sft"] for zh, en in group]}
    for name in ("rl", "test"):
        references: dict[str, list[str]] = {}
        for zh, en in (pair for group in parts[name] for pair in group):
            references.setdefault(zh, []).append(en)
        rows[name] = [{"prompt": zh, "references": all_} for zh, all_ in references.items()]
    for name, records in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)
        write_atomic(folder / f"{name}.jsonl", lines)
        print(f"{name}.jsonl: {len(records)} records")


def translations(policy: Path, test: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The model's translations of the test sentences, greedy and sampled at temperature 1 (one each)."""
    model = load_language_model(ModelSettings(policy=str(policy), device="cpu"))
    asked = [
        Prompt(i, tuple(encode_source(model.tokenizer, row["prompt"])), row["prompt"])
        for i, row in enumerate(test)
    ]
    found = {}
    for mode, temperature in MODES.items():
        sampling = RolloutSettings(max_new_tokens=24, temperature=temperature, batch_size=128)
        engine = NativeEngine(model, sampling)
        rollout = generate(engine, asked, sampling, seed=0, step=0, stream=Stream.EVALUATION)
        found[mode] = rollout.texts
    return found


def corpus(texts: list[str], test: list[dict[str, Any]]) -> dict[str, float]:
    """BLEU and chrF of the whole test set, 0 to 100; sentences have one reference or more."""
    most = max(len(row["references"]) for row in test)
    streams = [[(row["references"] + [None] * most)[k] for row in test] for k in range(most)]
    return {
        "bleu": round(BLEU().corpus_score(texts, streams).score, 2),
        "corpus_chrf": round(CHRF().corpus_score(texts, streams).score, 2),
    }


def measured(before: dict[str, list[str]], after: dict[str, list[str]], test: list[dict[str, Any]]) -> Any:
    """Sentence chrF (0 to 100) before and after, and of the same sentences' difference, means with 95% intervals."""
    chrf, result = CHRF(), {}
    for mode in MODES:
        scores = [
            [
                chrf.sentence_score(t.strip(), row["references"]).score
                for t, row in zip(texts, test, strict=True)
            ]
            for texts in (before[mode], after[mode])
        ]
        row: dict[str, Any] = {}
        differences = [b - a for a, b in zip(*scores, strict=True)]
        for name, values in (("before", scores[0]), ("after", scores[1]), ("difference", differences)):
            estimate = mean_with_interval(values)
            row[name] = [round(x, 3) for x in (estimate.mean, estimate.low, estimate.high)]
        row["corpus"] = {"before": corpus(before[mode], test), "after": corpus(after[mode], test)}
        result[mode] = row
    return result


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| run | decoding | chrF before | chrF after | difference | BLEU before → after |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run, modes in results["runs"].items():
        for mode, row in modes.items():
            cells = []
            for name in ("before", "after", "difference"):
                mean, low, high = row[name]
                sign = "+" if name == "difference" else ""
                cells.append(f"{mean:{sign}.2f} ± {(high - low) / 2:.2f}")
            bleu = " → ".join(f"{row['corpus'][when]['bleu']:.2f}" for when in ("before", "after"))
            lines.append(f"| {run} | {mode} | {' | '.join(cells)} | {bleu} |")
    return "\n".join(lines) + "\n"


def measure(output: Path, runs: list[Path]) -> None:
    """The fine-tuned model and each run's policy on the whole test set."""
    start_job(threads=1)
    test = [json.loads(line) for line in (FOLDER / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    before = translations(FOLDER / "sft" / "policy", test)
    results: dict[str, Any] = {"test_sentences": len(test), "runs": {}, "examples": []}
    everyone = {"before": before}
    for run in runs:
        everyone[run.name] = translations(run / "policy", test)
        results["runs"][run.name] = measured(before, everyone[run.name], test)
    for i in range(12):
        greedy = {name: texts["greedy"][i] for name, texts in everyone.items()}
        results["examples"].append({**test[i], **greedy})
    output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output / "translation.json", results)
    write_atomic(output / "translation.md", table(results))
    print(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare").add_argument("text", type=Path)
    measuring = commands.add_parser("measure")
    measuring.add_argument("output", type=Path)
    measuring.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.text)
    else:
        measure(arguments.output, arguments.runs)


if __name__ == "__main__":
    main()
