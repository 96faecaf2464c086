"""Makes the sample data: short reviews with a label. Replace it by data of your own.

python make_data.py
"""

import json
import random
from pathlib import Path

WHAT = ["food", "room", "film", "book", "music", "coffee", "service", "view"]
WORDS = {
    "positive": ["great", "lovely", "fresh", "friendly", "bright", "charming"],
    "negative": ["awful", "dull", "cold", "rude", "dirty", "boring"],
    "neutral": ["usual", "average", "ordinary", "plain", "normal", "common"],
}


TRAINING, HELD_OUT = 900, 96
# So many of the training labels are wrong: what an annotator in a hurry writes.
WRONG = 0.4


def every_prompt():
    """Texts with their labels, in pairs of words."""
    return [
        (f"The {here} was {first}, the {there} {second}.", label)
        for label, words in WORDS.items()
        for here in WHAT
        for there in WHAT
        for first in words
        for second in words
        if here != there and first != second
    ]


def record(draw, prompt):
    text, label = prompt
    given = draw.choice(list(WORDS)) if draw.random() < WRONG else label
    return {"prompt": f"Review: {text}\nLabel:", "response": f" {given}", "label": label}


def write(folder, name, records):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (Path(folder) / "data").mkdir(exist_ok=True)
    Path(folder, "data", f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(folder="."):
    """Held-out prompts are none that the model trains on."""
    draw = random.Random(0)
    prompts = every_prompt()
    draw.shuffle(prompts)
    held_out, training = prompts[:HELD_OUT], prompts[HELD_OUT:]
    write(folder, "train", [record(draw, draw.choice(training)) for _ in range(TRAINING)])
    write(folder, "held-out", [record(draw, prompt) for prompt in held_out])


if __name__ == "__main__":
    main()
