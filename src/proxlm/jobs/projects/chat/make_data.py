"""Makes the sample data: questions and answers, as chat messages. Replace it by data of your own.

python make_data.py
"""

import json
import random
from pathlib import Path

THINGS = {
    "fox": "animal",
    "whale": "animal",
    "rose": "plant",
    "oak": "plant",
    "hammer": "tool",
    "needle": "tool",
    "violin": "instrument",
    "drum": "instrument",
    "bread": "food",
    "rice": "food",
    "horse": "animal",
    "tulip": "plant",
    "saw": "tool",
    "flute": "instrument",
    "cheese": "food",
}
QUESTIONS = [
    "What is a {}?",
    "Tell me what a {} is.",
    "Do you know what a {} is?",
    "Please explain: {}.",
    "I ask you: what is a {}?",
]
UNHELPFUL = ["I have no idea.", "Ask somebody else.", "That is a silly question.", "I do not want to say."]


TRAINING, HELD_OUT = 600, 24


def every_prompt():
    return [(question, thing) for question in QUESTIONS for thing in THINGS]


def record(draw, prompt):
    """Two of three answers do not help, so that there is something to learn."""
    question, thing = prompt
    kind = THINGS[thing]
    helpful = f"A {thing} is {'an' if kind[0] in 'ai' else 'a'} {kind}."
    answer = helpful if draw.random() < 1 / 3 else draw.choice(UNHELPFUL)
    asked = [{"role": "user", "content": question.format(thing)}]
    said = [{"role": "assistant", "content": answer}]
    return {"prompt": asked, "response": said, "thing": thing, "kind": kind}


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
