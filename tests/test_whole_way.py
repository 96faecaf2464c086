"""From raw text to a small deployed model, each command on what the one before has written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from proxlm.__main__ import main

for needed in ("datasketch", "py3langid", "gguf"):
    pytest.importorskip(needed)

DOCS = Path(__file__).parents[1] / "docs"
QUICK = ["--run.threads", "1", "--run.save-every", "0", "--run.report", "false", "--model.device", "cpu"]
SUPERVISED = ["--train.batch-tokens", "512", "--train.validate-every", "10"]


def run(*arguments: object) -> None:
    """A command that must end well."""
    assert main([str(argument) for argument in arguments]) == 0, arguments


def write_rows(path: str, rows: list[dict[str, str]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def loads_in_transformers(folder: str, kind: type = AutoModelForCausalLM) -> int:
    """How many parameters plain transformers finds there, with a tokenizer beside them that it reads."""
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("One day", return_tensors="pt")
    assert model(**{"input_ids": ids["input_ids"]}).logits.isfinite().all()
    return sum(p.numel() for p in model.parameters())


def test_raw_text_to_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages = [
        (DOCS / name).read_text(encoding="utf-8") for name in ("chat.md", "conversations.md", "tokens.md")
    ]
    paragraphs = [text for page in pages for text in page.split("\n\n") if len(text) > 80]
    dirty = [f"<p>{text}</p>" if i % 3 else f"{text}\u200b\x07" for i, text in enumerate(paragraphs)]
    Path("raw.txt").write_text("\n\n".join([*dirty, *dirty[:4]]), encoding="utf-8")

    run(
        "data",
        "--input",
        "raw.txt",
        "--documents",
        "blank_line",
        "--output",
        "clean",
        "--steps",
        "unicode",
        "--steps",
        "html",
        "--steps",
        "exact",
        "--steps",
        "split",
        "--split.validation",
        "0.2",
    )
    train, held_out = (
        [json.loads(line)["text"] for line in Path(f"clean/{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )
    assert len(train) + len(held_out) == len(paragraphs)  # the four copies are gone
    assert not any("<p>" in text or "\x07" in text for text in train)

    run(
        "tokenizer",
        "--text.train",
        "clean/train.jsonl",
        "--vocabulary",
        "400",
        "--context",
        "96",
        "--output",
        "tokens",
    )
    assert len(AutoTokenizer.from_pretrained("tokens")) == 400

    sizes = ["hidden", "32", "layers", "2", "heads", "2", "context", "96"]
    new = [word if i % 2 else f"--new.{word}" for i, word in enumerate(sizes)]
    run(
        "pretrain",
        "--text.train",
        "clean/train.jsonl",
        "--text.validation",
        "clean/validation.jsonl",
        "--new.tokenizer",
        "tokens",
        *new,
        "--train.block",
        "48",
        "--train.steps",
        "30",
        *SUPERVISED,
        "--run.folder",
        "pretrained",
        *QUICK,
    )
    teacher_size = loads_in_transformers("pretrained/policy")

    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in train for text in [text[:120]]]
    write_rows("pairs.jsonl", [{"prompt": a, "response": b} for a, b in halves])
    run(
        "sft",
        "--model.policy",
        "pretrained/policy",
        "--text.train",
        "pairs.jsonl",
        "--text.validation-share",
        "0.2",
        "--train.steps",
        "10",
        *SUPERVISED,
        "--run.folder",
        "tuned",
        *QUICK,
    )
    loads_in_transformers("tuned/policy")

    draw = random.Random(0)
    shuffled = [(a, b, " ".join(draw.sample(b.split(), len(b.split())))) for a, b in halves]
    write_rows("compared.jsonl", [{"prompt": a, "chosen": b, "rejected": " " + c} for a, b, c in shuffled])
    run(
        "reward",
        "--model.policy",
        "tuned/policy",
        "--text.train",
        "compared.jsonl",
        "--text.validation-share",
        "0.2",
        "--test.baselines",
        "false",
        "--train.steps",
        "10",
        *SUPERVISED,
        "--run.folder",
        "judge",
        *QUICK,
    )
    loads_in_transformers("judge/reward", AutoModelForSequenceClassification)

    write_rows("prompts.jsonl", [{"prompt": a} for a, _ in halves])
    run(
        "ppo",
        "--model.policy",
        "tuned/policy",
        "--data.prompts",
        "prompts.jsonl",
        "--data.eval-count",
        "4",
        "--reward.use",
        "reward_model",
        "--reward.args.path",
        "judge/reward",
        "--ppo.steps",
        "2",
        "--ppo.batch-size",
        "4",
        "--ppo.minibatches",
        "1",
        "--rollout.max-new-tokens",
        "8",
        "--run.folder",
        "improved",
        *QUICK,
    )
    assert loads_in_transformers("improved/policy") == teacher_size

    student = ["type", "llama", "hidden", "16", "layers", "1", "heads", "2", "context", "96"]
    scratch = [word if i % 2 else f"--scratch.{word}" for i, word in enumerate(student)]
    run(
        "distill",
        "--model.teacher",
        "improved/policy",
        *scratch,
        "--data.prompts",
        "prompts.jsonl",
        "--data.eval-count",
        "4",
        "--rollout.max-new-tokens",
        "8",
        "--train.steps",
        "10",
        *SUPERVISED,
        "--run.folder",
        "small",
        *QUICK,
    )
    assert loads_in_transformers("small/policy") < teacher_size / 2

    run(
        "compress",
        "small/policy",
        "--method",
        "none",
        "--quantise",
        "q8_0",
        "--output",
        "smaller",
        "--cost.text",
        "clean/validation.jsonl",
        "--cost.tokens",
        "32",
        "--cost.new-tokens",
        "4",
        "--cost.repeats",
        "1",
    )
    (file,) = Path("smaller").glob("**/*.gguf")
    assert file.stat().st_size < Path("small/policy/model.safetensors").stat().st_size

    run(
        "evaluate",
        "--models",
        file,
        "--data.eval-prompts",
        "prompts.jsonl",
        "--data.eval-count",
        "4",
        "--reward.use",
        "reward_model",
        "--reward.args.path",
        "judge/reward",
        "--rollout.max-new-tokens",
        "8",
        "--output",
        "found.json",
    )
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))["models"]
    assert found[0]["metrics"]["length"]["mean"] > 0
