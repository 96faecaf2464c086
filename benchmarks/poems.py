"""What PPO on form and rhyme does to a model of Chinese poems, before and after, on the held-out first lines.

    python benchmarks/poems.py OUTPUT_FOLDER --text runs/poems/text.jsonl runs/poems/ppo-0 runs/poems/ppo-1 ...

For each run (a folder of proxlm ppo recipes/poems-ppo.toml): the shares of poems with the right form, and of those
that have it and rhyme, with 95% intervals; and what would show a collapse: different poems, distinct characters and
pairs, different rhyming words, the most frequent rhyme, and lines that stand in the training text. Writes poems.json
and poems.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proxlm.data.han import HAN
from proxlm.evaluation import tables
from proxlm.evaluation.intervals import wilson_interval
from proxlm.evaluation.metrics import distinct_n
from proxlm.evaluation.tables import Table
from proxlm.report.run import load_run
from proxlm.rewards.poem import poem_parts, rhymes_by_pinyin
from proxlm.runlog.folder import write_atomic, write_json_atomic

LINES, SAMPLES = 4, 6
ROWS = {
    "form": "right form",
    "rhyme_lines": "even lines of the rhyme asked for",
    "rhyme": "right form and both of them",
    "different": "different poems",
    "distinct_1": "distinct characters",
    "distinct_2": "distinct pairs of characters",
    "rhyme_words": "different last characters",
    "top_rhyme": "most frequent rhyme",
    "copied": "lines of the training text",
}


def lines_of(text: str) -> list[str]:
    return [line for line in re.split(rf"[^{HAN}]+", text) if line]


def measured(responses: Sequence[str], prompts: Sequence[str], known: set[str]) -> dict[str, Any]:
    """The numbers of one model."""
    rhyme = rhymes_by_pinyin()
    asked = [prompt.partition("，") for prompt in prompts]  # the name of the rhyme, and the first line
    parts = [
        poem_parts(first + response, LINES, 0, rhyme, name)
        for (name, _, first), response in zip(asked, responses, strict=True)
    ]
    written = [lines_of(response) for response in responses]
    ends = [lines[-1] for lines, part in zip(written, parts, strict=True) if lines and part["form"] == 1]
    groups = Counter(rhyme(line) for line in ends)
    every = [line for lines in written for line in lines]
    texts = ["".join(lines) for lines in written]
    form = wilson_interval(sum(part["form"] == 1 for part in parts), len(parts))
    rhyming = wilson_interval(sum(part["rhyme"] == 1 for part in parts), len(parts))
    return {
        "poems": len(texts),
        "form": [form.mean, form.low, form.high],
        "rhyme_lines": sum(part["rhyme"] for part in parts) / len(parts),
        "rhyme": [rhyming.mean, rhyming.low, rhyming.high],
        "different": len(set(texts)) / len(texts),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "rhyme_words": len({line[-1] for line in ends}) / max(1, len(ends)),
        "top_rhyme": max(groups.values(), default=0) / max(1, len(ends)),
        "copied": sum(line in known for line in every) / max(1, len(every)),
    }


def of_run(folder: Path, known: set[str]) -> dict[str, Any]:
    """Before and after, sampled and greedy, with the first few poems of each."""
    run = load_run(folder)
    found: dict[str, Any] = {}
    for when, evaluation in (("before", run.before), ("after", run.after)):
        if evaluation is None:
            raise SystemExit(f"{folder}: not evaluated {when} training; has it ended?")
        prompts = [row["prompt"] for row in evaluation.responses]
        for how in ("sampled", "greedy"):
            rows = [row if how == "sampled" else row["greedy"] for row in evaluation.responses]
            responses = [row["response"] for row in rows]
            samples = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
            found[f"{how}, {when}"] = {**measured(responses, prompts, known), "samples": samples[:SAMPLES]}
    return found


def table(name: str, found: dict[str, Any]) -> Table:
    rows = [[title, *(cell(numbers[key]) for numbers in found.values())] for key, title in ROWS.items()]
    return Table(["", *found], rows, name)


def cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
    return f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Poems before and after PPO.")
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    rows = [json.loads(line)["text"] for line in options.text.read_text(encoding="utf-8").splitlines()]
    known = {line for poem in rows for line in lines_of(poem)}
    results = {run.name: of_run(run, known) for run in options.runs}
    shown = [table(name, found) for name, found in results.items()]
    options.output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(options.output / "poems.json", results)
    write_atomic(options.output / "poems.md", tables.as_markdown(shown))
    print(tables.as_text(shown))
    for name, found in results.items():
        for how, numbers in found.items():
            print(f"\n{name}, {how}:", *numbers["samples"], sep="\n  ")


if __name__ == "__main__":
    main()
