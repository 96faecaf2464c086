"""`proxlm probe`: suggestions for a recipe, the same ones each time, and nothing else left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxlm.__main__ import main
from proxlm.models.save import save_language_model
from small_models import TEXTS, tiny_model

RECIPE = """
[model]
policy = "model"
device = "cpu"
[text]
train = ["pairs.jsonl"]
[train]
batch_tokens = 120
[run]
threads = 1
"""
SMALL = [
    "--lr-steps",
    "20",
    "--lr-repeats",
    "2",
    "--noise-batches",
    "2",
    "--noise-parts",
    "2",
    "--noise-after",
    "2",
]


@pytest.fixture
def place(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    pairs = [json.dumps({"prompt": text[:6], "response": text[6:20]}) for text in TEXTS * 8]
    Path("pairs.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    Path("recipe.toml").write_text(RECIPE)
    return tmp_path


def found(folder):
    """What a probe has found, without what it measured in seconds and bytes."""
    content = json.loads(Path(folder, "probe.json").read_text())
    for size in content["sizes"]:
        del size["seconds"], size["memory_gb"]
    return {key: value for key, value in content.items() if key not in ("lines", "settings")}


def test_a_recipe_is_probed_twice_with_the_same_numbers_and_its_model_is_untouched(place, capsys):
    before = {path: path.read_bytes() for path in sorted(Path("model").iterdir())}
    for folder in ("one", "two", "two"):  # an old one is written again
        assert main(["probe", "sft", "recipe.toml", "--folder", folder, *SMALL]) == 0
    said = capsys.readouterr().out
    assert "train.micro_batch_tokens = " in said
    assert "optim.lr" in said
    assert "train.batch_tokens" in said
    assert found("one") == found("two")
    assert len(found("one")["sweeps"]) == 2
    assert {path: path.read_bytes() for path in sorted(Path("model").iterdir())} == before
    names = sorted(path.name for path in place.iterdir())
    assert names == ["model", "one", "pairs.jsonl", "recipe.toml", "two"]
    page = Path("one", "probe.html").read_text("utf-8")
    assert page.count("<path") >= 5
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_what_cannot_be(place, capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("do not touch")
    cases = {
        "something else than a probe": ["recipe.toml", "--folder", "mine"],
        "must be less than lr_high = 0.1": ["recipe.toml", "--lr-low", "1", "--lr-high", "0.1"],
        "run.resume": ["recipe.toml", "--set", "run.resume=true", "--set", "run.folder=run"],
        "recipe": [],
        "no-such.toml": ["no-such.toml"],
    }
    for message, arguments in cases.items():
        assert main(["probe", "sft", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert Path("mine/thesis.txt").read_text() == "do not touch"
