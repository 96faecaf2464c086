"""From the sample of Tang poems to PPO on form and rhyme: the recipes, tiny."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxlm.__main__ import main
from proxlm.report.run import load_run

pytest.importorskip("pypinyin")
RECIPES = Path(__file__).parents[1] / "recipes"
SAMPLE = RECIPES / "data" / "tang-poems.json"


def prepare(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["poems.py", *arguments])
    runpy.run_path(str(RECIPES / "poems.py"), run_name="__main__")


def rows(name: str) -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def test_the_whole_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(monkeypatch, str(SAMPLE), "--output", "poems")
    line = (
        f"pretrain {RECIPES}/poems-pretrain.toml --text.train poems/text.jsonl --text.validation_share 0.1"
        " --new.hidden 32 --new.layers 1 --new.heads 2 --train.steps 30 --train.batch_tokens 512"
        " --run.folder p --run.report false"
    )
    assert main(line.split()) == 0
    tokenizer = AutoTokenizer.from_pretrained("p/policy")
    AutoModelForCausalLM.from_pretrained("p/policy")
    poem = rows("poems/text.jsonl")[0]["text"]
    assert tokenizer.tokenize(poem) == [*poem]  # whole characters
    line = (
        f"sft {RECIPES}/poems-sft.toml --model.policy p/policy --text.train poems/rhymes.jsonl --train.steps 4"
        " --text.validation_share 0.1 --train.batch_tokens 256 --run.folder s --run.report false"
    )
    assert main(line.split()) == 0
    line = (
        f"ppo {RECIPES}/poems-ppo.toml --model.policy s/policy --data.prompts poems/prompts.jsonl"
        " --data.eval_prompts poems/held-out.jsonl --data.eval_count 4 --ppo.steps 2 --ppo.batch_size 8"
        " --rollout.max_new_tokens 12 --run.folder r --run.report false"
    )
    assert main(line.split()) == 0
    run = load_run("r")
    assert {"reward/form", "reward/rhyme", "reward/distinct", "reward/han"} <= run.after.metrics.keys()
    assert all("�" not in row["response"] for row in run.after.responses)


def test_poems_are_dealt_out_without_leaks_and_always_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(monkeypatch, str(SAMPLE), "--output", "a")
    prepare(monkeypatch, str(SAMPLE), str(SAMPLE), "--output", "b")
    names = ("text.jsonl", "prompts.jsonl", "held-out.jsonl", "rhymes.jsonl")
    for name in names:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    texts, prompts, held_out, rhymes = (rows(f"a/{name}") for name in names)
    firsts = [{row["text"][: row["text"].index("，") + 1] for row in texts}]
    firsts += [{row["prompt"][2:] for row in part} for part in (prompts, held_out)]
    poems = {row["text"] for row in texts}
    assert rhymes
    assert all(row["prompt"][2:] + row["response"] in poems for row in rhymes)
    assert all(firsts)
    assert not firsts[0] & firsts[1] | firsts[0] & firsts[2] | firsts[1] & firsts[2]
    assert sum(map(len, (texts, prompts, held_out))) == len(json.loads(SAMPLE.read_text(encoding="utf-8")))


def test_what_is_no_such_poem_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("opencc")
    monkeypatch.chdir(tmp_path)
    poems = [
        ["兩岸猿聲啼不住，輕舟已過萬重山。朝辭白帝彩雲間，千里江陵一日還。"],
        ["春眠不觉晓，", "处处闻啼鸟。", "夜来风雨声，", "花落知多少。"],
        ["春眠不觉晓，处处闻啼鸟。"],
        ["春眠不觉□，处处闻啼鸟。夜来风雨声，花落知多少。"],
        ["白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"],
    ]
    Path("x.json").write_text(json.dumps([{"paragraphs": p} for p in poems]), encoding="utf-8")
    prepare(monkeypatch, "x.json", "--output", "o", "--simplified")
    shown = capsys.readouterr().out
    assert "1  left out: another form" in shown
    assert "1  left out: a character that is not Han" in shown
    texts = {row["text"] for row in rows("o/text.jsonl")}
    assert len(texts) == 3
    assert "两岸猿声啼不住，轻舟已过万重山。朝辞白帝彩云间，千里江陵一日还。" in texts
