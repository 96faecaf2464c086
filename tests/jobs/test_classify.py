"""`proxlm classify` from the command line: tables, files, what is saved, the same bytes again, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import proxlm
from proxlm.__main__ import main
from proxlm.classification.features import FeatureReader
from proxlm.config import FeatureSettings, ModelSettings
from proxlm.errors import DataError, ModelError
from proxlm.models.save import save_language_model
from small_models import tiny_model

WORDS = {"no": ["bad", "dull"], "yes": ["good", "fine"]}


def records(count: int, seed: int) -> list[dict[str, Any]]:
    draw, made = random.Random(seed), []
    for i in range(count):
        label = list(WORDS)[i % 2]
        word = draw.choice(WORDS[label if draw.random() > 0.2 else list(WORDS)[(i + 1) % 2]])
        made.append({"text": f"A {word} film {draw.randrange(10**6)}", "label": label})
    return made


@pytest.fixture
def place(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    for name, count, seed in (("train", 60, 1), ("held-out", 40, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in records(count, seed))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


FILES = ["--data.train", "train.jsonl", "--data.eval", "held-out.jsonl"]
SMALL = [
    *("classify", "model", *FILES, "--device", "cpu", "--folds", "3", "--run.threads", "1"),
    *("--boosting.rounds", "10", "--bagging.size", "3"),
]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_table_and_a_saved_classifier(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["--features.label-texts", '{no = " x", yes = " moon"}', "--choose", "stacking"]
    assert main([*SMALL, *labels, "--output", "out"]) == 0
    shown = capsys.readouterr().out
    for name in ("words", "label_texts", "logistic", "bagging", "boosting", "stacking"):
        assert name in shown
    assert "less words" in shown
    assert "(40 texts, paired" in shown
    assert "prompt" not in shown
    found = json.loads((place / "out" / "evaluation.json").read_text("utf-8"))["models"]
    words = found[0]["metrics"]
    assert 0.6 < words["accuracy"]["mean"] < 1
    assert words["macro_f1"]["low"] < words["macro_f1"]["mean"] < words["macro_f1"]["high"]
    more = json.loads((place / "out" / "classification.json").read_text("utf-8"))
    by_name = {one["name"]: one["metrics"] for one in found}
    for metric in ("accuracy", "log_loss", "macro_f1"):
        lead = next(d for d in more["differences"] if (d["metric"], d["arm"]) == (metric, "stacking"))
        means = [by_name[name][metric]["mean"] for name in ("stacking", "words")]
        assert lead["estimate"]["mean"] == pytest.approx(means[0] - means[1])
    assert set(more["log_loss_by_cross_validation"]) == set(by_name)
    # The saved one is the one of the table, from the texts alone.
    classifier = proxlm.load_text_classifier("out", device="cpu")
    lines = (place / "out" / "evaluation-stacking.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [row["response"] for row in rows]
    said = classifier.probabilities(texts)
    np.testing.assert_allclose(said[:, 1], [row["probabilities"]["yes"] for row in rows], atol=1e-6)
    assert classifier.labels(texts) == [row["answer"] for row in rows]
    assert said.tobytes() == proxlm.load_text_classifier("out", "cpu").probabilities(texts).tobytes()
    apply = ["classify", "--classifier", "out", "--data.eval", "new.jsonl", "--device", "cpu", "--output"]
    (place / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    assert main([*apply, "labels.jsonl"]) == 0
    labels = [json.loads(line) for line in (place / "labels.jsonl").read_text("utf-8").splitlines()]
    assert [row["label"] for row in labels] == classifier.labels(texts)
    assert [row["probabilities"]["yes"] for row in labels] == said[:, 1].tolist()
    assert main([*apply, "new.jsonl"]) == 2
    assert main([*apply, "labels.jsonl"]) == 0  # its own
    capsys.readouterr()
    assert main([*apply, "train.jsonl"]) == 2
    assert "train.jsonl: is there already, and proxlm classify did not write it" in capsys.readouterr().err
    assert (place / "train.jsonl").read_text("utf-8").count("film") == 60
    assert main([*apply, "other.jsonl", "--folds", "3"]) == 2
    assert "has no effect with classifier" in capsys.readouterr().err
    with pytest.raises(DataError, match="expected some texts"):
        classifier.probabilities([" "])


def test_the_same_bytes_again_and_features_read_once(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        assert main([*SMALL, "--output", folder]) == 0
    assert files_in(place / "one") == files_in(place / "two")
    capsys.readouterr()

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(FeatureReader, "__init__", never)
    other = [*SMALL, "--use", "logistic", "--choose", "words", "--output"]
    assert main([*other, "one"]) == 0
    assert main([*other, "two"]) == 0
    assert files_in(place / "one") == files_in(place / "two")
    assert "reading" not in capsys.readouterr().out
    assert proxlm.load_text_classifier("one").labels(["A good film", "A bad film"]) == ["yes", "no"]


def test_a_folder_of_something_else_stays_as_it_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "other").mkdir()
    (place / "other" / "mine").write_text("x", "utf-8")
    assert main([*SMALL, "--output", "other"]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert main([*SMALL, "--use", "logistic", "--output", "out"]) == 0
    before = files_in(place / "out")
    assert main([*SMALL, "--features.pooling", "last", "--output", "out"]) == 2
    assert "was begun with other features" in capsys.readouterr().err
    assert files_in(place / "out") == before


def test_another_model_than_it_was_fitted_to_is_refused(place: Path, tokenizer: Any) -> None:
    assert main([*SMALL, "--use", "logistic", "--choose", "logistic", "--output", "out"]) == 0
    save_language_model(tiny_model(tokenizer, seed=1), place / "new")
    (place / "new" / "model.safetensors").replace(place / "model" / "model.safetensors")
    with pytest.raises(ModelError, match="not the model"):
        proxlm.load_text_classifier("out", device="cpu").labels(["A good film"])


@pytest.mark.parametrize("type", ["llama", "gpt2", "lstm"])
def test_features_are_the_states_of_transformers(tokenizer: Any, tmp_path: Path, type: str) -> None:
    model = tiny_model(tokenizer, type)
    save_language_model(model, tmp_path / "model")
    texts = ["The cat", "One day a small dog found a big red ball", "moon"]
    settings = ModelSettings(policy=str(tmp_path / "model"), device="cpu", precision="float32")
    labels = {"a": " x", "b": " moon"}
    states: dict[str, list[Any]] = {"mean": [], "last": []}
    said = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model.trunk(ids, use_cache=False).last_hidden_state[0]
            logits = model.network(ids, use_cache=False).logits[0, -1]
        states["mean"].append(hidden.mean(0).numpy())
        states["last"].append(hidden[-1].numpy())
        first = [tokenizer(f"{text}{label}")["input_ids"][ids.shape[1]] for label in labels.values()]
        said.append(logits[first].softmax(-1).numpy())
    for pooling in ("mean", "last"):
        wanted = FeatureSettings(pooling=pooling, label_texts=labels, batch_tokens=16)
        found = FeatureReader(settings, wanted, ["a", "b"], False).read(texts, texts)
        np.testing.assert_allclose(found.features, states[pooling], atol=2e-5)
        np.testing.assert_allclose(found.label_probabilities, said, atol=2e-5)
        assert found.features.dtype == np.float32


def one(text: Any = "a film", **more: Any) -> str:
    return json.dumps({"text": text, "label": "no", **more}) + "\n"


MANY = "".join(json.dumps(row) + "\n" for row in records(60, 5))


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        ("", [], "train.jsonl"),
        (one() + "{", [], "train.jsonl:2"),
        (one(text=""), [], 'field "text" must hold a text'),
        (one(text=5), [], 'field "text" must hold a text'),
        ('{"text": "a"}\n', [], "data.label_field"),
        (one(label=[1]), [], 'field "label" must be a class'),
        (one() * 40, [], "has 40 of 1"),
        (
            MANY + "".join(one(f"b {i}", label="maybe") for i in range(5)),
            [],
            "data.train: 5 different texts of class 'maybe'; folds = 3 needs 6 of each",
        ),
        (MANY + one("b", label="maybe") * 9, [], "data.train: 1 different text of class 'maybe'; folds"),
        (MANY, ["--data.eval", "train.jsonl"], "has 0 of 0 (without 60 texts that are also held out)"),
        (
            "".join(one(f"w{i}", label=["no", "yes"][i % 2]) for i in range(24)),
            [],
            "no word stands in two texts",
        ),
        (MANY, ["--features.label-texts", '{no = " x", maybe = " y"}'], "must name the classes no, yes"),
        (MANY.replace('"no"', '"never"'), [], "data.eval: class 'no' is not in the training texts"),
        (MANY, ["--data.eval", "none.jsonl"], "none.jsonl"),
        (MANY, ["--use", "trees"], "use"),
        (MANY, ["--choose", "label_texts"], "choose"),
        (MANY, ["--features.template", "x"], "must hold {text}"),
        (MANY, ["--features.label-texts", '{no = " x", yes = " x"}'], "stands for two classes"),
    ],
)
def test_bad_input_is_named_before_a_model_is_read(
    place: Path, capsys: pytest.CaptureFixture[str], train: str, more: list[str], message: str
) -> None:
    (place / "train.jsonl").write_text(train, encoding="utf-8")
    (place / "model" / "model.safetensors").unlink()
    assert main([*SMALL, *more, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "safetensors" not in error
    assert not (place / "out" / "features-train").exists()


def test_what_does_not_fit_the_model_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = json.dumps({"text": "film " * 400, "label": "no"}) + "\n"
    (place / "train.jsonl").write_text(MANY + long, encoding="utf-8")
    weights = (place / "model" / "model.safetensors").rename(place / "weights")
    assert main([*SMALL, "--features.label-texts", '{no = " x", yes = " xa"}', "--output", "a"]) == 2
    assert "begin with the same token" in capsys.readouterr().err
    assert main([*SMALL, "--output", "a"]) == 2
    assert "train.jsonl:61: " in capsys.readouterr().err
    weights.rename(place / "model" / "model.safetensors")
    # Nothing was made, so the corrected command goes on in the same folder.
    assert main([*SMALL, "--data.on-long-text", "truncate", "--use", "logistic", "--output", "a"]) == 0


def test_without_scikit_learn_the_extra_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxlm.config.classify.find_spec", lambda name: None)
    assert main([*SMALL, "--output", "out"]) == 2
    assert 'scikit-learn is not installed: pip install "proxlm[metrics]"' in capsys.readouterr().err
    assert not (place / "out").exists()
