"""Makes the sample data: topics with couplets (题目与对句). Replace it by data of your own.

python make_data.py
"""

import json
import random
from pathlib import Path

SEASONS = ["春", "夏", "秋", "冬"]
PLACES = ["山中", "江上", "城南", "湖边", "寺外", "楼头", "塞北", "江南"]
HOURS = ["晓望", "夜坐", "晚归", "送别", "独酌", "怀人"]
FIRST = ["春风", "秋月", "青山", "白云", "江水", "夜雨", "故人", "孤舟"]
VERBS = ["照", "入", "满", "对", "望", "过"]
# Ends that rhyme in pairs, by their final.
ENDS = {
    "ang": ["夜光", "花香", "路长", "斜阳"],
    "ou": ["高楼", "东流", "清秋", "轻舟"],
    "an": ["远山", "天寒", "月圆", "云间"],
}
EXTRA = ["又", "正", "还", "空"]


def line(draw, end, right_length):
    """Five characters, or six."""
    extra = "" if right_length else draw.choice(EXTRA)
    return draw.choice(FIRST) + extra + draw.choice(VERBS) + end


TRAINING, HELD_OUT = 1200, 48


def every_prompt():
    return [f"题：{season}{place}{hour}\n" for season in SEASONS for place in PLACES for hour in HOURS]


def record(draw, prompt):
    """One in three has its form (five and five characters) and rhymes, so that there is something to learn."""
    good = draw.random() < 1 / 3
    final = draw.choice(list(ENDS))
    other = final if good else draw.choice([one for one in ENDS if one != final])
    lengths = (True, True) if good else draw.choice([(True, False), (False, True), (True, True)])
    upper = line(draw, draw.choice(ENDS[final]), lengths[0])
    lower = line(draw, draw.choice(ENDS[other]), lengths[1])
    return {"prompt": prompt, "response": f"{upper}，{lower}。"}


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
