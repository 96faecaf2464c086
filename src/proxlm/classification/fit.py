"""Fitting classifiers with scikit-learn; each comes back as the arrays that it is applied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from proxlm.classification.heads import (
    Head,
    LabelHead,
    LinearHead,
    StackedHead,
    TreesHead,
    WordsHead,
    side_by_side,
)
from proxlm.classification.inputs import Floats, Inputs, Rows
from proxlm.config import BaggingSettings, BoostingSettings
from proxlm.errors import DataError
from proxlm.evaluation.word_baseline import word_regression, words_of
from proxlm.seeds import Purpose, derive_seed

Fit = Callable[[Inputs, Rows, int], Head]
"""Inputs, the class of each from 0, and K → a head of K classes."""

# How little weights are held back, of features with deviation 1; chosen by so many folds.
_STRENGTHS, _FOLDS, _MOST_STEPS = (0.001, 0.01, 0.1, 1.0), 3, 500


def logistic(inputs: Inputs, classes: Rows, count: int) -> LinearHead:
    """Logistic regression on standardised features; its strength of regularisation by cross-validation."""
    mean, scale = _standard(inputs)
    found = _search((inputs.features - mean) / scale, classes)
    weights, biases = _two_or_more(found.best_estimator_, count)
    return LinearHead(mean, scale, weights[None], biases[None])


def bagging(settings: BaggingSettings, seed: int) -> Fit:
    """Logistic regressions on bootstrap samples and shares of the features, as strong as is best for one of all."""

    def fit(inputs: Inputs, classes: Rows, count: int) -> LinearHead:
        from sklearn.ensemble import BaggingClassifier

        mean, scale = _standard(inputs)
        rows = (inputs.features - mean) / scale
        found = BaggingClassifier(
            _search(rows, classes).best_estimator_,
            n_estimators=settings.size,
            max_features=settings.features,
            random_state=seed,
        ).fit(rows, classes)
        weights = np.zeros((settings.size, count, rows.shape[1]))
        biases = np.zeros((settings.size, count))
        for i, (one, features) in enumerate(zip(found.estimators_, found.estimators_features_, strict=True)):
            if len(one.classes_) < count:
                raise DataError("bagging: a class is so rare that a sample of the texts has none of it")
            weights[i][:, features], biases[i] = _two_or_more(one, count)
        return LinearHead(mean, scale, weights, biases)

    return fit


def boosting(settings: BoostingSettings, seed: int) -> Fit:
    """Stochastic gradient boosting."""

    def fit(inputs: Inputs, classes: Rows, count: int) -> TreesHead:
        from sklearn.ensemble import GradientBoostingClassifier

        found = GradientBoostingClassifier(
            n_estimators=settings.rounds,
            learning_rate=settings.rate,
            max_depth=settings.depth,
            subsample=0.5,
            max_features="sqrt",
            random_state=seed,
        ).fit(inputs.features, classes)
        shares = np.bincount(classes, minlength=count) / len(classes)
        start = np.log(shares[1:] / shares[:1]) if count == 2 else np.log(shares)
        trees = [tree.tree_ for tree in found.estimators_.ravel()]
        roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])

        def children(sides: Sequence[Any]) -> Rows:
            moved = [np.where(side >= 0, side + root, -1) for side, root in zip(sides, roots, strict=True)]
            return np.concatenate(moved).astype(np.int64)

        return TreesHead(
            start=start,
            rate=settings.rate,
            roots=roots.astype(np.int64),
            left=children([tree.children_left for tree in trees]),
            right=children([tree.children_right for tree in trees]),
            feature=np.concatenate([tree.feature for tree in trees]).astype(np.int64),
            threshold=np.concatenate([tree.threshold for tree in trees]),
            value=np.concatenate([tree.value[:, 0, 0] for tree in trees]),
        )

    return fit


def words(inputs: Inputs, classes: Rows, count: int) -> WordsHead:
    """TF-IDF and logistic regression, the baseline. Raises DataError where no word stands in two texts."""
    found = words_of(inputs.texts)
    if found is None:
        raise DataError("the training texts are too few, or no word stands in two of them")
    weights, biases = _two_or_more(word_regression(found, inputs.texts, classes.tolist()), count)
    return WordsHead([str(word) for word in found.get_feature_names_out()], found.idf_, weights, biases)


def label_texts(_inputs: Inputs, _classes: Rows, _count: int) -> LabelHead:
    """The language model's own probabilities, which learn nothing here."""
    return LabelHead()


def fold_of_each(classes: Rows, texts: Sequence[str], folds: int, seed: int) -> Rows:
    """Which of the folds each record is held out in: equal texts together, and of each class about the same share."""
    from sklearn.model_selection import StratifiedGroupKFold

    found = np.zeros(len(classes), dtype=np.int64)
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    groups = [number[text] for text in texts]
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=derive_seed(seed, Purpose.FOLD) % 2**32)
    for fold, (_, held_out) in enumerate(parts.split(np.zeros(len(classes)), classes, groups)):
        found[held_out] = fold
    return found


def out_of_fold(fit: Fit, inputs: Inputs, classes: Rows, count: int, folds: Rows) -> Floats:
    """[n, K]: what is said of each record by a classifier that has learnt from the other folds alone."""
    said = np.zeros((len(inputs), count))
    for fold in np.unique(folds):
        learnt, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        said[held_out] = fit(inputs.rows(learnt), classes[learnt], count).probabilities(inputs.rows(held_out))
    return said


def stacked(parts: Mapping[str, Head], said: Sequence[Floats], classes: Rows, count: int) -> StackedHead:
    """Logistic regression on what the parts say of records that they have not learnt from.

    Args:
        parts: Fitted to all records.
        said: What each part says of each record, out of fold [n, K].
        classes: [n].
        count: K.
    """
    weights, biases = _two_or_more(_regression(1.0).fit(side_by_side(said), classes), count)
    return StackedHead(parts, weights, biases)


def stacked_out_of_fold(said: Sequence[Floats], classes: Rows, count: int, folds: Rows) -> Floats:
    """[n, K]: what stacking says of each record where its own weights have learnt from the other folds alone."""
    found = np.zeros((len(classes), count))
    for fold in np.unique(folds):
        learnt, held_out = folds != fold, folds == fold
        head = stacked({}, [one[learnt] for one in said], classes[learnt], count)
        found[held_out] = head.of([one[held_out] for one in said])
    return found


def _standard(inputs: Inputs) -> tuple[Floats, Floats]:
    """Mean and deviation of each feature."""
    features = inputs.features.astype(np.float64)
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=_MOST_STEPS)


def _search(rows: Floats, classes: Rows) -> Any:
    from sklearn.model_selection import GridSearchCV

    strengths = {"C": _STRENGTHS}
    return GridSearchCV(_regression(1.0), strengths, cv=_FOLDS, scoring="neg_log_loss").fit(rows, classes)


def _two_or_more(regression: Any, count: int) -> tuple[Floats, Floats]:
    """Weights [K, d] and biases [K]; scikit-learn has one row for two classes, and the first class has 0 here."""
    weights, biases = regression.coef_, regression.intercept_
    if count > 2:
        return weights, biases
    return np.vstack([np.zeros_like(weights), weights]), np.concatenate([np.zeros(1), biases])
