"""Makes the sample data: openings of small stories, each with a continuation. Replace it by data of your own.

python make_data.py
"""

import json
import random
from pathlib import Path

WHO = ["dog", "cat", "bird", "fox", "girl", "boy", "rabbit", "frog"]
WHERE = ["to the park", "to the river", "up the hill", "into the garden", "to school", "along the road"]
WHEN = ["One day", "In the morning", "After the rain", "On Sunday"]
HAPPY = [
    "It found a red ball and was happy.",
    "A kind friend came and they had fun.",
    "The sun was warm and all was good.",
    "It sang a song and began to smile.",
]
SAD = [
    "It lost its ball and was sad.",
    "It fell down and began to cry.",
    "The wind was cold and nobody came.",
    "It was alone and felt bad.",
]


TRAINING, HELD_OUT = 600, 48


def every_prompt():
    return [f"{when} a little {who} went {where}." for when in WHEN for who in WHO for where in WHERE]


def record(draw, prompt):
    """Two of three stories end badly, so that there is something to learn."""
    ending = draw.choice(HAPPY if draw.random() < 1 / 3 else SAD)
    return {"prompt": prompt, "response": f" {ending}"}


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
