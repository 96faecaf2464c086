"""The prompts of docs/distillation.md: short everyday questions about 100 subjects, some pairs of them held out.

    python benchmarks/everyday_questions.py FOLDER

writes FOLDER/train.jsonl and FOLDER/held-out.jsonl. A held-out prompt has a question and a subject that training
knows, but not together.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from proxlm.jobs.chat_prompts import SUBJECTS

MORE_SUBJECTS = (
    "a garden", "the wind", "summer", "winter", "autumn", "a forest", "a lake", "an island", "a farm", "milk",
    "cheese", "rice", "a cake", "chocolate", "salt", "lemons", "tomatoes", "eggs", "a fish", "a butterfly",
    "a spider", "an owl", "a wolf", "an elephant", "a ship", "an aeroplane", "a bus", "a guitar", "a piano", "a drum",
    "a film", "a poem", "a newspaper", "a mirror", "a blanket", "a fire", "a lamp", "glass", "gold", "wood",
)  # fmt: skip
QUESTIONS = (
    "Tell me about {0}.", "Why do people like {0}?", "Describe {0}.", "What is special about {0}?",
    "What does {0} make you think of?", "Say something kind about {0}.", "What would you tell a child about {0}?",
    "Give me one fact about {0}.", "Write a sentence about {0}.", "Where can I find {0}?", "What is {0} good for?",
    "How would you explain {0}?", "What is the best thing about {0}?", "What is the worst thing about {0}?",
    "Give me advice about {0}.", "Ask me a question about {0}.", "What goes well with {0}?",
    "Why is {0} important?", "Do you like {0}?", "What can go wrong with {0}?", "How can I learn more about {0}?",
    "Write the first line of a story about {0}.", "What should I know about {0}?", "How has {0} changed over time?",
)  # fmt: skip
HELD_OUT = 256


def everyday_questions(seed: int = 0) -> tuple[list[str], list[str]]:
    """The prompts to train on and those held out, all different, in random order."""
    prompts = [question.format(subject) for question in QUESTIONS for subject in (*SUBJECTS, *MORE_SUBJECTS)]
    random.Random(seed).shuffle(prompts)
    return prompts[HELD_OUT:], prompts[:HELD_OUT]


def main(folder: str) -> None:
    """Write both files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, prompts in zip(("train", "held-out"), everyday_questions(), strict=True):
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (Path(folder) / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
