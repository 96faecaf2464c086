"""A judge that sees words alone: what of a preference, a score or a class single words explain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from proxlm.rewards.phrases import UNSPACED

# How little weights are held back is chosen among these values, by so many folds of the training part.
_STRENGTHS, _FOLDS, _FEWEST = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), 4, 20
# A run of a script without spaces, a word of another one, or a sign.
_PIECE = re.compile(rf"([{UNSPACED}]+)|[^\W{UNSPACED}]+|[^\w\s]")


def word_features(text: str) -> list[str]:
    """What a judge of words counts: words and signs in lower case; of scripts without spaces, n-grams of characters.

    Which of both it is, is decided character by character: a run of Han characters or kana gives its single
    characters and its neighbouring pairs, everything else its words, so that mixed texts need no setting.
    """
    found = list[str]()
    for piece in _PIECE.finditer(text.lower()):
        if (run := piece[1]) is None:
            found.append(piece[0])
        else:
            found += [*run, *(run[i : i + 2] for i in range(len(run) - 1))]
    return found


def word_scores(chosen: Sequence[str], rejected: Sequence[str], texts: Sequence[str]) -> list[float] | None:
    """Scores of texts by a logistic regression on the words of completions that were compared.

    Words are weighted by tf-idf; the regression is on the difference of two completions, without an intercept, as
    Bradley–Terry is. Its strength of regularisation is chosen by cross-validation.

    Args:
        chosen: The better completions to learn from.
        rejected: The worse ones.
        texts: What to score.

    Returns:
        None if scikit-learn is not installed, there are too few comparisons, or they hold no words.
    """
    words = words_of([*chosen, *rejected])
    if words is None or len(chosen) < _FEWEST:
        return None
    from sklearn.linear_model import LogisticRegression

    signs = [1 if i % 2 else -1 for i in range(len(chosen))]  # a regression needs two classes
    leads = (words.transform(chosen) - words.transform(rejected)).multiply([[sign] for sign in signs]).tocsr()
    search = _best(LogisticRegression(fit_intercept=False, max_iter=500), "C", "neg_log_loss")
    search.fit(leads, signs)
    scores: list[float] = (words.transform(texts) @ search.best_estimator_.coef_[0]).tolist()
    return scores


def word_values(learnt: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> list[float] | None:
    """Values of texts by a ridge regression on the words of texts with known values; None as of `word_scores`."""
    words = words_of(learnt)
    if words is None:
        return None
    from sklearn.linear_model import Ridge

    search = _best(Ridge(), "alpha", "neg_mean_squared_error")
    search.fit(words.transform(learnt), list(values))
    found: list[float] = search.predict(words.transform(texts)).tolist()
    return found


def word_classes(
    learnt: Sequence[str], classes: Sequence[int], texts: Sequence[str], count: int
) -> list[list[float]] | None:
    """Probabilities of `count` classes by a logistic regression on the words of texts whose classes are known.

    Returns:
        None as of `word_scores`, or where a class has too few texts to learn from.
    """
    words = words_of(learnt)
    if words is None or too_few(classes) is not None:
        return None
    regression = word_regression(words, learnt, classes)
    found = [[0.0] * count for _ in texts]
    for row, said in zip(found, regression.predict_proba(words.transform(texts)).tolist(), strict=True):
        for number, p in zip(regression.classes_.tolist(), said, strict=True):
            row[number] = p
    return found


def too_few(classes: Sequence[Any]) -> str | None:
    """Why no classifier of words can be learnt from texts of these classes; None: one can."""
    counts = Counter(classes)
    if len(classes) < _FEWEST or len(counts) < 2:
        return f"needs {_FEWEST} records of two classes or more, and has {len(classes)} of {len(counts)}"
    rarest = min(counts, key=lambda name: (counts[name], str(name)))
    if counts[rarest] < _FOLDS:
        return f"needs {_FOLDS} records of each class, and has {counts[rarest]} of {rarest!r}"
    return None


def word_regression(words: Any, learnt: Sequence[str], classes: Sequence[int]) -> Any:
    """scikit-learn's logistic regression from the words of texts to their classes."""
    from sklearn.linear_model import LogisticRegression

    search = _best(LogisticRegression(max_iter=500), "C", "neg_log_loss")
    return search.fit(words.transform(learnt), list(classes)).best_estimator_


def words_of(texts: Sequence[str]) -> Any:
    """The weights of words by tf-idf, fitted to texts; None: scikit-learn is not there, or too few of them."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return None
    words: Any = TfidfVectorizer(sublinear_tf=True, min_df=2, analyzer=word_features)
    try:
        return words.fit(texts) if len(texts) >= _FEWEST else None
    except ValueError:  # no word stands in two of them
        return None


def _best(model: Any, strength: str, scoring: str) -> Any:
    """The model with the strength of regularisation that cross-validation finds best."""
    from sklearn.model_selection import GridSearchCV

    return GridSearchCV(model, {strength: _STRENGTHS}, cv=_FOLDS, scoring=scoring)
