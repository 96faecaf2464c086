"""`proxlm tokenizer`, and what takes its tokenizers: pretrain, sft, ppo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxlm.__main__ import main
from proxlm.config import load_config
from proxlm.errors import ConfigError
from proxlm.report.run import load_run
from small_models import TEXTS

POEM = "春眠不觉晓，处处闻啼鸟。\n"
SMALL = "--new.hidden 16 --new.layers 1 --new.heads 2 --new.context 64 --train.block 32 --train.steps 2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("\n".join(TEXTS * 30), encoding="utf-8")
    Path("zh.txt").write_text(POEM, encoding="utf-8")
    Path("en.txt").write_text("A small cat looked at a red ball.\n", encoding="utf-8")
    return tmp_path


def run(*lines: str) -> None:
    assert main([word for line in lines for word in line.split()]) == 0


def test_train_report_pretrain_and_resume(here: Path, capsys: Any) -> None:
    run(
        "tokenizer --text.train train.txt --tokens.kind characters --tokens.whole_han 1 --vocabulary 330",
        "--output tok --text.validation zh.txt --text.validation en.txt --report.output report.md",
    )
    found = json.loads((here / "tok/tokenizer-report.json").read_text(encoding="utf-8"))["tokenizers"][0]
    assert found["texts"]["zh.txt"]["tokens_per_character"] == 1.0
    assert found["whole"]["parts"] == found["whole"]["changed"] == 0
    assert "tokens per word" in Path("report.md").read_text(encoding="utf-8")
    run("pretrain --text.train train.txt --new.tokenizer tok --run.folder r", SMALL)
    own, its = (AutoTokenizer.from_pretrained(path) for path in ("tok", "r/policy"))
    assert own.get_vocab() == its.get_vocab()
    assert its.model_max_length == 64
    AutoModelForCausalLM.from_pretrained("r/policy")
    run(
        "pretrain --text.train train.txt --new.tokenizer tok --run.folder r --resume --train.steps 3",
        SMALL[:-15],
    )
    run("pretrain --text.train train.txt --new.tokenizer tok --run.folder w --train.steps 3", SMALL[:-15])
    resumed, whole = (load_run(name).metrics["loss"] for name in "rw")
    assert resumed == whole
    capsys.readouterr()
    assert main(["tokenizer", "--text.train", "train.txt", "--output", "tok"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_tokenizer_that_has_changed_is_noticed_on_resume(here: Path, capsys: Any) -> None:
    run("tokenizer --text.train train.txt --vocabulary 300 --output tok")
    run("pretrain --text.train train.txt --new.tokenizer tok --run.folder r", SMALL)
    for file in Path("tok").iterdir():
        file.unlink()
    run("tokenizer --text.train train.txt --vocabulary 290 --output tok")
    again = f"pretrain --text.train train.txt --new.tokenizer tok --run.folder r --resume {SMALL}"
    assert main(again.replace("steps 2", "steps 3").split()) == 2
    assert "tok" in capsys.readouterr().err


def test_a_kind_is_trained_by_pretrain_and_sft(here: Path) -> None:
    kind = "tokens.kind unigram --X.tokens.unknown unk --X.vocabulary 300"
    run("pretrain --text.train train.txt --run.folder r", SMALL, f"--new.{kind}".replace("X", "new"))
    assert AutoTokenizer.from_pretrained("r/policy").unk_token == "<|unk|>"
    records = [{"prompt": "春眠", "response": f"不觉晓{i}"} for i in range(30)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    same = SMALL.replace("new", "scratch").replace("--train.block 32", "")
    run(
        "sft --text.train pairs.jsonl --run.folder s --scratch.type llama",
        same,
        f"--scratch.{kind}".replace("X", "scratch"),
    )
    assert AutoTokenizer.from_pretrained("s/policy").unk_token == "<|unk|>"
    run("tokenizer --text.train train.txt --vocabulary 300 --output tok")
    run("sft --text.train pairs.jsonl --run.folder t --scratch.type llama --scratch.tokenizer tok", same)
    assert (
        AutoTokenizer.from_pretrained("t/policy").get_vocab()
        == AutoTokenizer.from_pretrained("tok").get_vocab()
    )


def test_extend_a_model_then_train_it_and_compare(here: Path, capsys: Any) -> None:
    run("pretrain --text.train train.txt --run.folder r --new.vocabulary 300", SMALL)
    Path("words.txt").write_text("晓处\n闻啼鸟\n", encoding="utf-8")
    run(
        "tokenizer --extend.base r/policy --extend.tokens moonlight --extend.file words.txt --extend.count 4",
        "--text.train train.txt --output ext --text.validation zh.txt --report.compare r/policy",
    )
    tokenizer = AutoTokenizer.from_pretrained("ext")
    assert "闻啼鸟" in tokenizer.tokenize(POEM)
    assert AutoModelForCausalLM.from_pretrained("ext").config.vocab_size == len(tokenizer)
    first, other = json.loads(Path("ext/tokenizer-report.json").read_text(encoding="utf-8"))["tokenizers"]
    assert first["whole"]["tokens"] < other["whole"]["tokens"]
    run(
        "pretrain --text.train train.txt --model.policy ext --run.folder more --train.block 32 --train.steps 2"
    )
    run("tokenizer --extend.base ext --extend.tokens 夜来 --output again --text.validation zh.txt")
    capsys.readouterr()
    run(
        "tokenizer ext --text.validation zh.txt --text.validation en.txt --report.by language --report.compare again"
    )
    shown = capsys.readouterr().out
    assert "zh" in shown
    assert "again" in shown


def test_a_tokenizer_alone_is_extended(here: Path) -> None:
    run("tokenizer --text.train train.txt --vocabulary 300 --output tok")
    Path("zh.txt").write_text("处处闻啼鸟，处处\n" * 9, encoding="utf-8")
    run(
        "tokenizer --extend.base tok --extend.count 5 --extend.han_only true --text.train zh.txt --output ext"
    )
    extended = AutoTokenizer.from_pretrained("ext")
    assert len(extended) > len(AutoTokenizer.from_pretrained("tok"))
    assert extended.tokenize("闻啼鸟，")[:3] == ["闻", "啼", "鸟"]
    assert not (here / "ext/config.json").exists()


def test_special_tokens_and_a_chat_template_are_carried(here: Path) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    Path("chat.jinja").write_text(template, encoding="utf-8")
    run(
        "tokenizer --text.train train.txt --vocabulary 300 --output tok --chat_template chat.jinja",
        "--tokens.special <|im_start|> --tokens.special <|im_end|>",
    )
    tokenizer = AutoTokenizer.from_pretrained("tok")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "春"}], tokenize=False)
    assert text.startswith("<|im_start|>user\n春<|im_end|>")
    assert 3 in tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "text.train: required"),
        ("--tokenizer a", "text.validation: required"),
        ("--extend.base a", "extend.tokens: give the new tokens of a"),
        ("--extend.base a --extend.count 3", "text.train: required with extend.count"),
        ("--text.train a --report.output x.pdf", "must end with"),
        ("--text.train a --tokens.kind wordpiece --tokens.unknown bytes", "wordpiece has no bytes"),
    ],
)
def test_problems_are_named_before_anything_is_read(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        load_config("tokenizer", arguments=line.split())


def test_settings_without_effect_are_refused() -> None:
    for line in ("--new.vocabulary 300", "--new.tokens.kind unigram"):
        with pytest.raises(ConfigError, match=r"has no effect with new\.tokenizer"):
            load_config("pretrain", arguments=f"--text.train a --new.tokenizer b {line}".split())


def test_a_ready_tokenizer_that_is_not_there(here: Path, capsys: Any) -> None:
    assert main(f"pretrain --text.train train.txt --new.tokenizer ./none {SMALL}".split()) == 2
    assert 'new.tokenizer = "./none": no such folder' in capsys.readouterr().err
