"""Sentences of film reviews as prompts, with their label as the response.

    python benchmarks/film_reviews.py ../shared/data/sentence-polarity
    proxlm sft recipes/film-sft.toml
    proxlm ppo recipes/film-ppo.toml

Reads rt-polarity.pos and rt-polarity.neg (Pang and Lee 2005), and writes train.jsonl, from which both learn, and
test.jsonl into runs/films. No sentence stands in both; the labels of each file are half and half.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from proxlm.runlog.folder import write_atomic

FOLDER = Path("runs/films")
LABELS = {"pos": " positive", "neg": " negative"}
TEST = 750  # of each label


def prepare(source: Path, folder: Path = FOLDER) -> None:
    """Deal the sentences out, each label in an order of its own; one with both labels is left out."""
    texts = {
        label: [line.strip() for line in (source / f"rt-polarity.{label}").read_text("utf-8").splitlines()]
        for label in LABELS
    }
    both = set(texts["pos"]) & set(texts["neg"])
    parts: dict[str, list[dict[str, str]]] = {"test": [], "train": []}
    for label, found in texts.items():
        sentences = [text for text in dict.fromkeys(found) if text not in both]
        random.Random(0).shuffle(sentences)
        for name, some in (("test", sentences[:TEST]), ("train", sentences[TEST:])):
            parts[name] += [{"prompt": f"{text}\nLabel:", "response": LABELS[label]} for text in some]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        random.Random(1).shuffle(rows)
        write_atomic(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{folder / f'{name}.jsonl'}: {len(rows):,} sentences")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    prepare(parser.parse_args().source)
