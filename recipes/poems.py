"""Poems as JSON → the files that recipes/poems-*.toml read.

    python recipes/poems.py recipes/data/tang-poems.json --output runs/poems
    python recipes/poems.py FOLDER/poet.tang.*.json --simplified --output runs/poems

A JSON file is a list of poems, {"paragraphs": ["line，line。", ...]} each; other fields (title, author) are not used.
Poems of four lines of 5 or of 7 Han characters (--lines, --characters) are kept, written one way, once each. Poems
with the same first line stay together. They are dealt out by a hash of that line, so that a poem always goes to the
same file:

    text.jsonl     for proxlm pretrain
    rhymes.jsonl   for proxlm sft: its poems that rhyme; a prompt is the name of the rhyme and the first line
    prompts.jsonl  such prompts for proxlm ppo, of poems that are not in text.jsonl
    held-out.jsonl such prompts to evaluate on, of poems that are in neither
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from proxlm.data.han import HAN
from proxlm.rewards.poem import poem_parts, rhymes_by_pinyin

# Shares of the poems for prompts and to hold out; never more than so many.
PROMPTS, HELD_OUT = (0.15, 2048), (0.1, 512)


def poems(
    options: argparse.Namespace, convert: Callable[[str], str], counts: Counter[str]
) -> Iterator[list[str]]:
    """The lines of each poem that has the form."""
    for file in options.files:
        for poem in json.loads(file.read_text(encoding="utf-8")):
            counts["in the files"] += 1
            lines = [
                line for line in re.split(r"[，。！？；、\s]+", convert("".join(poem["paragraphs"]))) if line
            ]
            sizes = {len(line) for line in lines}
            if len(lines) != options.lines or len(sizes) != 1 or not sizes & {*options.characters}:
                counts["left out: another form"] += 1
            elif not re.fullmatch(f"[{HAN}]+", "".join(lines)):
                counts["left out: a character that is not Han"] += 1
            else:
                yield lines


def written(lines: list[str]) -> str:
    """A poem as the model reads it: 春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"""
    return "".join(line + "，。"[i % 2] for i, line in enumerate(lines))


def dealt(kept: dict[str, list[list[str]]]) -> dict[str, list[dict[str, str]]]:
    """First line → poems, dealt out to the four files."""
    rhyme = rhymes_by_pinyin()

    def asked(lines: list[str]) -> dict[str, str]:
        first = lines[0] + "，"
        return {"prompt": f"{rhyme(lines[1])}，{first}", "response": written(lines).removeprefix(first)}

    order = sorted(kept, key=lambda first: hashlib.sha256(first.encode()).digest())
    held_out, prompts = (min(most, round(share * len(order))) for share, most in (HELD_OUT, PROMPTS))
    text = [lines for first in order[held_out + prompts :] for lines in kept[first]]
    return {
        "held-out.jsonl": [asked(kept[first][0]) for first in order[:held_out]],
        "prompts.jsonl": [asked(kept[first][0]) for first in order[held_out : held_out + prompts]],
        "text.jsonl": [{"text": written(lines)} for lines in text],
        "rhymes.jsonl": [
            asked(lines) for lines in text if poem_parts(written(lines), len(lines), 0, rhyme)["rhyme"] == 1
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Poems as JSON → the files that recipes/poems-*.toml read.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/poems"))
    parser.add_argument(
        "--simplified", action="store_true", help="traditional → simplified characters (opencc)"
    )
    parser.add_argument("--lines", type=int, default=4, help="lines of a poem")
    parser.add_argument("--characters", type=int, nargs="+", default=[5, 7], help="characters of a line")
    options = parser.parse_args()
    convert = str
    if options.simplified:
        from opencc import OpenCC  # pip install "proxlm[corpus]"

        convert = OpenCC("t2s").convert
    counts: Counter[str] = Counter()
    kept: dict[str, list[list[str]]] = {}
    seen: set[str] = set()
    for lines in poems(options, convert, counts):
        if (poem := written(lines)) in seen:
            counts["left out: a second time"] += 1
            continue
        seen.add(poem)
        kept.setdefault(lines[0], []).append(lines)
        counts[f"of {len(lines[0])} characters a line"] += 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in dealt(kept).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.output / name).write_text("".join(lines), encoding="utf-8")
        counts[f"→ {name}"] = len(rows)
    for what, count in counts.items():
        print(f"{count:>7,}  {what}")


if __name__ == "__main__":
    main()
