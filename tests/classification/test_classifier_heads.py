"""Classifiers as plain arrays: equal to scikit-learn's own, loaded bit for bit, without leaks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from proxlm.classification import fit
from proxlm.classification.heads import Head
from proxlm.classification.inputs import Floats, Inputs, Rows
from proxlm.classification.saved import NAME, NUMBERS, load, save, sealed
from proxlm.config import BaggingSettings, BoostingSettings
from proxlm.errors import ModelError

BAGGING, BOOSTING = BaggingSettings(size=4), BoostingSettings(rounds=12)


def problem(classes: int, count: int = 120, noise: float = 1.5, seed: int = 0) -> tuple[Inputs, Rows]:
    """Gaussian clouds, a word for each class in most texts, and label probabilities that know a little."""
    draw = np.random.default_rng(seed)
    wanted = np.arange(count) % classes
    centres = draw.normal(size=(classes, 6))
    features = (centres[wanted] + noise * draw.normal(size=(count, 6))).astype(np.float32)
    said = draw.random(count) < 0.7
    texts = [
        f"word{k if own else draw.integers(classes)} and {draw.integers(9)}"
        for k, own in zip(wanted, said, strict=True)
    ]
    label = draw.dirichlet(np.ones(classes), count) + 0.3 * np.eye(classes)[wanted]
    return Inputs(texts, features, (label / label.sum(1, keepdims=True)).astype(np.float32)), wanted


def every(inputs: Inputs, wanted: Rows, classes: int) -> dict[str, Head]:
    fits = {
        "words": fit.words,
        "label_texts": fit.label_texts,
        "logistic": fit.logistic,
        "bagging": fit.bagging(BAGGING, 0),
        "boosting": fit.boosting(BOOSTING, 0),
    }
    folds = fit.fold_of_each(wanted, [str(i) for i in range(len(wanted))], 3, 0)
    heads: dict[str, Head] = {name: one(inputs, wanted, classes) for name, one in fits.items()}
    said = [fit.out_of_fold(one, inputs, wanted, classes, folds) for one in fits.values()]
    return heads | {"stacking": fit.stacked(dict(heads), said, wanted, classes)}


@pytest.mark.parametrize("classes", [2, 3])
def test_they_say_what_scikit_learn_says(classes: int) -> None:
    from sklearn.ensemble import BaggingClassifier, GradientBoostingClassifier, StackingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, wanted = problem(classes)
    new, _ = problem(classes, 50, seed=1)
    search = GridSearchCV(
        LogisticRegression(max_iter=500), {"C": (0.001, 0.01, 0.1, 1.0)}, cv=3, scoring="neg_log_loss"
    )
    scaled = StandardScaler().fit(inputs.features.astype(np.float64))
    search.fit(scaled.transform(inputs.features.astype(np.float64)), wanted)
    own = search.best_estimator_
    bag = BaggingClassifier(own, n_estimators=4, max_features=0.5, random_state=0)
    boost = GradientBoostingClassifier(
        n_estimators=12, learning_rate=0.1, max_depth=3, subsample=0.5, max_features="sqrt", random_state=0
    )
    boost.fit(inputs.features, wanted)
    rows = new.features.astype(np.float64)
    bag.fit(scaled.transform(inputs.features.astype(np.float64)), wanted)
    pairs = [
        (fit.logistic(inputs, wanted, classes), own.predict_proba(scaled.transform(rows))),
        (fit.bagging(BAGGING, 0)(inputs, wanted, classes), bag.predict_proba(scaled.transform(rows))),
        (fit.boosting(BOOSTING, 0)(inputs, wanted, classes), boost.predict_proba(new.features)),
    ]
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"(?u)\w+|[^\w\s]")
    strengths = {"C": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}
    found = GridSearchCV(LogisticRegression(max_iter=500), strengths, cv=4, scoring="neg_log_loss")
    found.fit(words.fit_transform(inputs.texts), wanted)
    pairs.append((fit.words(inputs, wanted, classes), found.predict_proba(words.transform(new.texts))))
    for head, said in pairs:
        np.testing.assert_allclose(head.probabilities(new), said, atol=1e-12)
    # Stacking, of two that read the same features.
    folds = fit.fold_of_each(wanted, [str(i) for i in range(len(wanted))], 3, 0)
    parts = {"logistic": fit.logistic, "boosting": fit.boosting(BOOSTING, 0)}
    out = [fit.out_of_fold(one, inputs, wanted, classes, folds) for one in parts.values()]
    heads = {name: one(inputs, wanted, classes) for name, one in parts.items()}
    splits = [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(3)]
    theirs = StackingClassifier(
        [("logistic", make_pipeline(StandardScaler(), search)), ("boosting", boost)],
        LogisticRegression(max_iter=500),
        cv=splits,
        stack_method="predict_proba",
    )
    theirs.fit(inputs.features.astype(np.float64), wanted)
    stacked = fit.stacked(heads, out, wanted, classes)
    np.testing.assert_allclose(stacked.probabilities(new), theirs.predict_proba(rows), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_loaded_one_says_the_same_bit_for_bit(classes: int, tmp_path: Path) -> None:
    inputs, wanted = problem(classes)
    new, _ = problem(classes, 40, seed=1)
    names = [f"class {i}" for i in range(classes)]
    for name, head in every(inputs, wanted, classes).items():
        for folder in (tmp_path / name, tmp_path / f"{name} again"):
            save(head, names, {"model": "m"}, folder)
        found = load(tmp_path / name)
        assert found.classes == names
        assert found.head.probabilities(new).tobytes() == head.probabilities(new).tobytes()
        assert np.allclose(found.head.probabilities(new).sum(1), 1)
        for file in (NAME, NUMBERS):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name} again" / file).read_bytes()
        assert {path.suffix for path in (tmp_path / name).iterdir()} == {".json", ".safetensors"}


def accuracy(said: Floats, wanted: Rows) -> float:
    return float((said.argmax(1) == wanted).mean())


def test_what_can_be_separated_is() -> None:
    inputs, wanted = problem(3, noise=0.05)
    new, right = problem(3, 60, noise=0.05)
    for name, head in every(inputs, wanted, 3).items():
        if name not in ("words", "label_texts"):
            assert accuracy(head.probabilities(new), right) == 1, name


def test_labels_at_random_stay_at_chance_out_of_fold() -> None:
    """Boosting learns the labels of its training texts by heart; what stacking learns from must not show it."""
    draw = np.random.default_rng(3)
    inputs, _ = problem(2, 300)
    wanted = draw.permutation(np.arange(300) % 2)
    folds = fit.fold_of_each(wanted, [str(i) for i in range(300)], 5, 0)
    learns = fit.boosting(BoostingSettings(rounds=200, depth=6), 0)
    by_heart = learns(inputs, wanted, 2).probabilities(inputs)
    assert accuracy(by_heart, wanted) == 1
    out = fit.out_of_fold(learns, inputs, wanted, 2, folds)
    assert abs(accuracy(out, wanted) - 0.5) < 0.1
    said = fit.stacked_out_of_fold([out], wanted, 2, folds)
    assert abs(accuracy(said, wanted) - 0.5) < 0.1
    assert float(-np.log(said[np.arange(300), wanted]).mean()) > 0.68  # log 2 is 0.693
    # Stacked on what it has learnt by heart, it would be sure of everything.
    leaking = fit.stacked({}, [by_heart], wanted, 2).of([by_heart])
    assert accuracy(leaking, wanted) == 1


def test_a_record_is_never_judged_by_what_has_learnt_it() -> None:
    inputs, wanted = problem(2, 60)
    texts = [f"text {i // 2}" for i in range(60)]  # each twice
    folds = fit.fold_of_each(wanted, texts, 4, 0)
    assert all(folds[i] == folds[i + 1] for i in range(0, 60, 2))
    seen: list[set[str]] = []

    class Watcher:
        def __init__(self, learnt: Inputs) -> None:
            self.learnt = set(learnt.texts)

        def probabilities(self, asked: Inputs) -> Floats:
            seen.append(self.learnt & set(asked.texts))
            return np.full((len(asked), 2), 0.5)

    named = Inputs(texts, inputs.features, inputs.label_probabilities)
    fit.out_of_fold(lambda some, _classes, _count: Watcher(some), named, wanted, 2, folds)
    assert seen == [set()] * 4


def broken(tmp_path: Path, change: str) -> Path:
    """A saved classifier of trees with something wrong."""
    from safetensors.numpy import load_file, save_file

    inputs, wanted = problem(2)
    folder = tmp_path / "saved"
    save(fit.boosting(BOOSTING, 0)(inputs, wanted, 2), ["a", "b"], {}, folder)
    arrays = load_file(folder / NUMBERS)
    content = json.loads((folder / NAME).read_text("utf-8"))
    if change == "loop":
        arrays["left"] = np.where(arrays["left"] >= 0, 0, -1)
    elif change == "outside":
        arrays["right"][0] = len(arrays["right"])
    elif change == "nan":
        arrays["value"][0] = np.nan
    elif change == "type":
        arrays["threshold"] = arrays["threshold"].astype(np.float32)
    elif change == "shape":
        arrays["start"] = arrays["start"][None]
    elif change == "entry":
        del content["head"]
    elif change == "missing":
        del arrays["roots"]
    elif change == "kind":
        content["head"]["kind"] = "code"
    elif change == "deep":
        content["head"] = {"kind": "stacking", "order": ["x"], "parts": {"x": {"kind": "stacking"}}}
    elif change == "format":
        content["format"] = 2
    elif change == "classes":
        content["classes"] = ["a", "a"]
    save_file(arrays, folder / NUMBERS)
    content = sealed(content, (folder / NUMBERS).read_bytes())  # as one who means it would write it
    (folder / NAME).write_text("{" if change == "json" else json.dumps(content), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop", "trees: their nodes do not fit together"),
        ("outside", "trees: their nodes do not fit together"),
        ("nan", "value holds a number that is not finite"),
        ("type", "threshold is float32 of shape"),
        ("shape", "start has 2 dimensions, and 1 are needed"),
        ("missing", "classifier.safetensors has no roots"),
        ("kind", "kind 'code'"),
        ("deep", "kind 'stacking'"),
        ("format", "format 2, where 1 is known"),
        ("json", "a damaged classifier"),
        ("classes", "two names or more, each once"),
        ("entry", "classifier.json has no 'head'"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, change: str, message: str) -> None:
    folder = broken(tmp_path, change)
    with pytest.raises(ModelError, match=f"saved: .*{message}"):
        load(folder)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    inputs, wanted = problem(2)
    head = fit.boosting(BOOSTING, 0)(inputs, wanted, 2)
    for file, old, new in ((NAME, b'"last"', b'"mean"'), (NUMBERS, b"\x3f", b"\x3e")):
        folder = tmp_path / file
        save(head, ["a", "b"], {"features": {"pooling": "last"}}, folder)
        content = (folder / file).read_bytes()
        at = content.rindex(old)
        (folder / file).write_bytes(content[:at] + new + content[at + len(old) :])
        with pytest.raises(ModelError, match="has changed since it was written"):
            load(folder)


def test_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no classifier"):
        load(tmp_path)
