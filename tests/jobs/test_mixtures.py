"""A mixture in the jobs: losses by source, what is said of it, and tokens that are kept between runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxlm import PretrainTrainer
from proxlm.__main__ import main
from proxlm.config import PretrainConfig, TextSettings
from proxlm.errors import ConfigError
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

QUIET = [
    "--model.device", "cpu", "--run.threads", "1", "--run.report", "true", "--run.save-every", "0", "--run.seed", "3",
    "--train.batch-tokens", "160", "--train.steps", "9", "--train.validate-every", "3",
]  # fmt: skip
NEW = [
    "--new.vocabulary",
    "300",
    "--new.hidden",
    "32",
    "--new.layers",
    "1",
    "--new.heads",
    "2",
    "--new.context",
    "64",
]
PRETRAIN = [
    "pretrain",
    *QUIET,
    *NEW,
    "--train.block",
    "16",
    "--text.train",
    "stories.txt",
    "--text.train",
    "poems.txt",
]
MIXED = ["--text.weights", "{stories = 1, poems = 1}"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stories.txt").write_text("The old dog slept near the door while rain fell on the wall.\n" * 99)
    Path("poems.txt").write_text("moon, o moon\nred, red moon, moon of june\n" * 12)
    return tmp_path


def rows(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


TIMES = ("time", "time/step", "tokens_per_second", "memory_gb")


def numbers(folder):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows(folder)]


def test_losses_and_epochs_by_source(place, capsys):
    assert main([*PRETRAIN, *MIXED, "--run.folder", "run"]) == 0
    said = capsys.readouterr().out
    assert "mixture: stories 50.0% of the tokens learnt" in said
    assert "read: stories " in said
    last = rows("run")[-1]
    losses = [last["validation_loss/stories"], last["validation_loss/poems"]]
    assert min(losses) < last["validation_loss"] < max(losses)
    assert last["epochs/poems"] > 2 > last["epochs/stories"] > 0
    report = Path("run", "report.html").read_text("utf-8")
    assert "Validation loss by source" in report
    assert "How many times each was read" in report


def test_held_out_files_of_their_own_have_their_own_names(place):
    Path("news.txt").write_text("Today the rain fell again on the old wall of the town, they said.\n" * 9)
    more = ["--text.validation", "news.txt", "--text.validation", "poems.txt"]
    assert main([*PRETRAIN, *MIXED, *more, "--run.folder", "run", "--train.steps", "3"]) == 0
    found = {name for name in rows("run")[-1] if name.startswith("validation_loss/")}
    assert found == {"validation_loss/news", "validation_loss/poems"}


def test_without_weights_nothing_changes_and_there_is_no_source(place):
    assert main([*PRETRAIN, "--run.folder", "run", "--train.steps", "3"]) == 0
    assert not any("/stories" in name for name in rows("run")[-1])


@pytest.mark.parametrize("mixed", [[], MIXED])
def test_kept_tokens_change_no_number_and_a_second_run_does_not_encode(place, monkeypatch, mixed):
    assert main([*PRETRAIN, *mixed, "--run.folder", "plain"]) == 0
    keep = ["--text.tokens", "tokens"]
    assert main([*PRETRAIN, *mixed, *keep, "--run.folder", "first"]) == 0
    (file,) = Path("tokens").iterdir()
    before = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("proxlm.data.token_streams.encoded", None)
        assert main([*PRETRAIN, *mixed, *keep, "--run.folder", "second"]) == 0
        # A model that is there brings its tokenizer: other tokens, another file; then the text is not read at all.
    assert numbers("plain") == numbers("first") == numbers("second")
    assert (
        Path("plain/policy/model.safetensors").read_bytes()
        == Path("second/policy/model.safetensors").read_bytes()
    )
    assert file.stat().st_mtime_ns == before
    Path("poems.txt").write_text("moon, o moon\nred, red moon, moon of may\n" * 12)
    assert main([*PRETRAIN, *mixed, *keep, "--run.folder", "third", "--train.steps", "3"]) == 0
    assert len(list(Path("tokens").iterdir())) == 2


def test_with_a_known_tokenizer_the_text_is_not_read_again(place, tokenizer, monkeypatch):
    save_language_model(tiny_model(tokenizer), Path("model"))
    job = [
        "pretrain",
        *QUIET,
        "--model.policy",
        "model",
        "--text.train",
        "stories.txt",
        "--train.block",
        "16",
    ]
    assert main([*job, "--run.folder", "plain"]) == 0
    assert main([*job, "--text.tokens", "tokens", "--run.folder", "first"]) == 0
    monkeypatch.setattr("proxlm.jobs.pretrain_text.read_texts", None)
    assert main([*job, "--text.tokens", "tokens", "--run.folder", "second"]) == 0
    assert numbers("plain") == numbers("first") == numbers("second")


def test_records_left_out_are_named_each_time(place):
    Path("bad.jsonl").write_text(
        json.dumps({"text": "good words in a row here. " * 30})
        + "\nnot json\n"
        + json.dumps({"text": "more good words. " * 30})
        + "\n"
    )
    job = [
        "pretrain",
        *QUIET,
        *NEW,
        "--train.block",
        "16",
        "--text.train",
        "bad.jsonl",
        "--on-bad-record",
        "skip",
    ]
    for folder in ("first", "second"):
        assert main([*job, "--text.tokens", "tokens", "--run.folder", folder, "--train.steps", "3"]) == 0
        assert len(Path(folder, "skipped.jsonl").read_text().splitlines()) == 1


def test_fine_tuning_holds_out_a_share_of_each_source(place, tokenizer, capsys):
    save_language_model(tiny_model(tokenizer), Path("model"))
    for name, count in (("many", 40), ("few", 6)):
        pairs = [
            json.dumps({"prompt": f"{i} {text[:6]}", "response": text[6:20]})
            for i in range(count // 2)
            for text in TEXTS[:2]
        ]
        Path(f"{name}.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    job = [
        "sft",
        *QUIET,
        "--model.policy",
        "model",
        "--text.train",
        "many.jsonl",
        "--text.train",
        "few.jsonl",
    ]
    assert main([*job, "--text.temperature", "1000", "--run.folder", "run"]) == 0
    last = rows("run")[-1]
    assert {"validation_loss/many", "validation_loss/few"} <= last.keys()
    assert "few 49." in capsys.readouterr().out or "few 50." in capsys.readouterr().out
    assert last["epochs/few"] > 3 * last["epochs/many"]


def test_what_cannot_be_is_refused_before_anything_is_read(place, capsys):
    cases = {
        "text.weights": [*PRETRAIN, "--text.weights", "{stories = 1}"],
        "train.curriculum_steps": [*PRETRAIN, "--train.curriculum-steps", "5"],
        "text.tokens": [
            "sft",
            *QUIET,
            "--model.policy",
            "m",
            "--text.train",
            "no.jsonl",
            "--text.tokens",
            "t",
        ],
        "train.curriculum_start": [*PRETRAIN, "--train.curriculum-start", "0.5"],
    }
    for key, arguments in cases.items():
        assert main([*arguments, "--run.folder", "run"]) == 2
        assert key in capsys.readouterr().err
    assert not Path("run").exists()
    with pytest.raises(ConfigError, match=r"text\.tokens: texts passed from Python"):
        PretrainTrainer(["a text"], PretrainConfig(text=TextSettings(tokens="tokens")))
