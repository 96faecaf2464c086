"""The judge of words beside models: what it counts, that it is scikit-learn's, where it stands, what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import proxlm
from proxlm.__main__ import main
from proxlm.config.metrics import MetricSettings
from proxlm.data.choices import Choices, Question
from proxlm.errors import DataError
from proxlm.evaluation.word_baseline import word_features
from proxlm.evaluation.words_beside import KnownPrompts, evaluate_word_choices, evaluate_words
from proxlm.models.save import save_language_model
from proxlm.types import Prompt
from small_models import tiny_model

WORDS = {"negative": ["bad", "dull", "poor"], "positive": ["good", "fine", "great"]}
CLASSES = MetricSettings(
    use=["accuracy", "macro_f1", "confusion", "calibration_error"],
    answer_fields=["label"],
    read="label",
    right="accuracy",
    confidence="probability",
    resamples=50,
)


def records(count: int, seed: int, noise: float = 0.2) -> list[dict[str, Any]]:
    """A word says the class; in a share of the records it is one of the other class."""
    draw, made = random.Random(seed), []
    for i in range(count):
        label = list(WORDS)[i % 2]
        word = draw.choice(WORDS[label if draw.random() > noise else list(WORDS)[(i + 1) % 2]])
        text = f"A {word} film {draw.randrange(10**6)}, {draw.choice(['long', 'short'])}"
        made.append({"prompt": text, "label": label, "choices": list(WORDS), "answer": label})
    return made


def prompts_of(rows: list[dict[str, Any]]) -> list[Prompt]:
    return [Prompt(i, (1,), row["prompt"], row) for i, row in enumerate(rows)]


def known_of(rows: list[dict[str, Any]]) -> KnownPrompts:
    return KnownPrompts([row["prompt"] for row in rows], [row["label"] for row in rows], "known.jsonl")


def by_sklearn(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> Any:
    """p(positive) of each held-out text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    words = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"(?u)\w+|[^\w\s]")
    found = words.fit_transform([row["prompt"] for row in train])
    strengths = {"C": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}
    search = GridSearchCV(LogisticRegression(max_iter=500), strengths, cv=4, scoring="neg_log_loss")
    search.fit(found, [row["label"] == "positive" for row in train])
    return search.predict_proba(words.transform([row["prompt"] for row in held_out]))[:, 1]


def test_what_is_counted_is_decided_by_the_script() -> None:
    assert word_features("It's GOOD, 3.5!") == ["it", "'", "s", "good", ",", "3", ".", "5", "!"]
    assert word_features("很好看 v2") == ["很", "好", "看", "很好", "好看", "v2"]
    assert word_features("GPU很快。") == ["gpu", "很", "快", "很快", "。"]
    assert word_features("これはペンです")[:2] == ["こ", "れ"]


def test_chinese_has_the_weights_of_character_n_grams() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["春眠不觉晓处处闻啼鸟", "夜来风雨声花落知多少", "不觉花落"]
    own = TfidfVectorizer(analyzer=word_features, sublinear_tf=True).fit(texts)
    wanted = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    assert sorted(own.vocabulary_) == sorted(wanted.vocabulary_)
    assert abs(own.transform(texts) - wanted.transform(texts)).max() < 1e-15


def test_it_is_scikit_learns_regression() -> None:
    train, held_out = records(120, 1), records(60, 2)
    prompts = prompts_of(held_out)
    found = evaluate_words(known_of(train), prompts, [p.text for p in prompts], CLASSES, seed=0)
    wanted = by_sklearn(train, held_out)
    answers = ["positive" if p > 0.5 else "negative" for p in wanted]
    assert [row["response"] for row in found.responses] == answers
    given = [row["probability"] for row in found.responses]
    assert given == pytest.approx([max(p, 1 - p) for p in wanted], abs=1e-9)
    right = sum(a == row["label"] for a, row in zip(answers, held_out, strict=True))
    assert 36 < right < 60  # noise: neither chance nor all
    assert found.metrics["task/accuracy"].mean == pytest.approx(right / 60)
    assert found.metrics["task/confidence"].mean == pytest.approx(sum(given) / 60)
    assert sum(map(sum, found.confusion["likeliest"].counts)) == 60
    assert not any(name.startswith("greedy/") for name in found.metrics)


def test_a_held_out_prompt_is_not_learnt() -> None:
    train, held_out = records(80, 1), records(20, 2)
    prompts = prompts_of(held_out)
    texts = [p.text for p in prompts]
    wrong = [{**row, "label": list(WORDS)[row["label"] == "negative"]} for row in held_out]
    apart = evaluate_words(known_of(train), prompts, texts, CLASSES, seed=0)
    mixed = evaluate_words(known_of([*wrong, *train]), prompts, texts, CLASSES, seed=0)
    assert mixed.metrics == apart.metrics
    with pytest.raises(DataError, match=r"has 0 of 0 \(20 others are also held out\)"):
        evaluate_words(known_of(wrong), prompts, texts, CLASSES, seed=0)


def test_choices_that_are_classes() -> None:
    train, held_out = records(120, 1), records(60, 2)
    questions = [
        Question(prompt, Choices(tuple(WORDS), list(WORDS).index(row["label"])), (1,), ((1,), (2,)), row["prompt"])
        for prompt, row in zip(prompts_of(held_out), held_out, strict=True)
    ]  # fmt: skip
    found = evaluate_word_choices(known_of(train), questions)
    p = by_sklearn(train, held_out)
    of_right = [p[i] if row["label"] == "positive" else 1 - p[i] for i, row in enumerate(held_out)]
    assert found.metrics["choice/accuracy"].mean == pytest.approx(sum(x > 0.5 for x in of_right) / 60)
    assert found.metrics["choice/probability"].mean == pytest.approx(sum(of_right) / 60)
    assert not {"choice/mass", "choice/accuracy_per_byte"} & set(found.metrics)
    other = Question(questions[0].prompt, Choices(("cold", "warm"), 0), (1,), ((1,), (2,)), "How is ice?")
    with pytest.raises(DataError, match="'cold' is never the right choice there"):
        evaluate_word_choices(known_of(train), [other])


@pytest.fixture
def place(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_language_model(tiny_model(tokenizer), tmp_path / "model")
    for name, count, seed in (("train", 60, 1), ("held-out", 24, 2)):
        text = "".join(json.dumps(row) + "\n" for row in records(count, seed))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "def one(completions):\n    return [1.0 for _ in completions]\n", "utf-8"
    )
    return tmp_path


USE = [
    *("--metrics.use", "accuracy", "--metrics.answer-fields", "label", "--metrics.read", "label"),
    *("--metrics.baseline", "train.jsonl"),
]
SHORT = ["--model.device", "cpu", "--rollout.max-new-tokens", "2"]
EVALUATE = ["evaluate", "--model.policy", "model", "--data.eval-prompts", "held-out.jsonl"]


def test_it_is_the_last_column_and_each_model_is_compared_with_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*EVALUATE, *SHORT, *USE, "--output", "found.json"]) == 0
    shown = capsys.readouterr().out
    assert "words: TF-IDF and logistic regression, learnt from" in shown
    assert "less words" in shown
    content = json.loads((place / "found.json").read_text(encoding="utf-8"))
    model, words = content["models"]
    assert words["name"] == "words"
    lead = next(d for d in content["differences"] if d["metric"] == "task/accuracy")
    means = [one["metrics"]["task/accuracy"]["mean"] for one in (model, words)]
    assert means[1] > 0.5
    assert (lead["arm"], lead["reference"]) == ("model", "words")
    assert lead["estimate"]["mean"] == pytest.approx(means[0] - means[1])
    assert lead["estimate"]["low"] <= lead["estimate"]["mean"] <= lead["estimate"]["high"]
    choices = ["--choices.field", "choices", "--metrics.baseline", "train.jsonl"]
    assert main([*EVALUATE, "--model.device", "cpu", *choices, "--responses", "answers.jsonl"]) == 0
    assert "less words" in capsys.readouterr().out
    rows = (place / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["model"] for row in rows] == ["model"] * 24 + ["words"] * 24


def test_a_run_of_ppo_has_it_beside_before_and_after(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = [
        *("ppo", "--model.policy", "model", "--model.critic", "shared", *SHORT, "--data.prompts", "train.jsonl"),
        *("--data.eval-prompts", "held-out.jsonl", "--data.eval-count", "24", "--reward.use", "mine.py:one"),
        *("--ppo.steps", "1", "--ppo.batch-size", "4", "--ppo.epochs", "1", "--run.tensorboard", "false"),
        *("--run.threads", "1", *USE, "--run.folder", "run"),
    ]  # fmt: skip
    assert main(run) == 0
    assert "words: TF-IDF" in capsys.readouterr().out
    found = proxlm.load_run("run").evaluations
    assert list(found) == ["before", "after", "words"]
    assert found["words"].metrics["task/accuracy"].mean > 0.5
    assert "logistic regression" in (place / "run" / "report.html").read_text(encoding="utf-8")
    assert main(["verify", "run"]) == 0
    kept = (place / "run" / "evaluation.json").read_bytes()
    assert main([*run, "--run.resume", "true"]) == 0
    assert (place / "run" / "evaluation.json").read_bytes() == kept
    assert main([*run, "--run.resume", "true", "--ppo.steps", "2"]) == 0
    assert proxlm.load_run("run").evaluations["words"].metrics == found["words"].metrics


@pytest.mark.parametrize(
    ("written", "more", "message"),
    [
        ("", USE, "train.jsonl"),
        ('{"prompt": "a"}\n', USE, "metrics.baseline = train.jsonl: metrics.answer_fields"),
        ('{"prompt": "a", "label": "x"}\n' * 30, USE, "has 30 of 1"),
        ('{"prompt": "a", "label": "x"}\n' * 30 + '{"prompt": "b", "label": "y"}\n', USE, "has 1 of 'y'"),
        (None, [*USE[2:]], "metrics of classes; add one to metrics.use: accuracy"),
        (None, [*USE[:-1], "none.jsonl"], "metrics.baseline: none.jsonl: no such file"),
        (None, [*USE[:-1], "words"], "metrics.baseline: words: unknown kind of file"),
    ],
)
def test_what_cannot_be_learnt_is_said_before_a_model_is_read(
    place: Path, capsys: pytest.CaptureFixture[str], written: str | None, more: list[str], message: str
) -> None:
    if written is not None:
        (place / "train.jsonl").write_text(written, encoding="utf-8")
    (place / "model" / "model.safetensors").unlink()
    assert main([*EVALUATE, *SHORT, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "safetensors" not in error


def test_without_scikit_learn_the_extra_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxlm.config.metrics.find_spec", lambda name: None)
    assert main([*EVALUATE, *SHORT, *USE]) == 2
    assert 'needs scikit-learn: pip install "proxlm[metrics]"' in capsys.readouterr().err
