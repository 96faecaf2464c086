"""Makes the sample data: games played at random, so that a new model knows what a turn looks like.

python make_data.py
"""

import json
import random
from pathlib import Path

TURNS = 6


def games(count, seed):
    """The text of whole games, as the environment of game.py and the policy write them together."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        text = ""
        for points in range(TURNS):  # a turn that goes on has won one
            word = draw.choice(["roll", "stop"])
            text += f"{points} > {word}\n"
            if word == "stop" or draw.randint(1, 6) == 1:
                break
        found.append({"text": text})
    return found


def main(folder="."):
    (Path(folder) / "data").mkdir(exist_ok=True)
    lines = [json.dumps(record) for record in games(1500, 0)]
    Path(folder, "data", "games.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
