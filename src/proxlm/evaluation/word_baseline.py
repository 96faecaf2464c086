"""A judge that sees words alone: what of a preference single words explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# How little weights are held back is chosen among these values, by so many folds of the training part.
_STRENGTHS, _FOLDS, _FEWEST = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), 4, 20


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
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
    except ImportError:
        return None
    if len(chosen) < _FEWEST:
        return None
    words: Any = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"(?u)\w+|[^\w\s]")
    try:
        words.fit([*chosen, *rejected])
    except ValueError:  # none stands in two of them
        return None
    signs = [1 if i % 2 else -1 for i in range(len(chosen))]  # a regression needs two classes
    leads = (words.transform(chosen) - words.transform(rejected)).multiply([[sign] for sign in signs]).tocsr()
    search: Any = GridSearchCV(
        LogisticRegression(fit_intercept=False, max_iter=500),
        {"C": _STRENGTHS},
        cv=_FOLDS,
        scoring="neg_log_loss",
    )
    search.fit(leads, signs)
    scores: list[float] = (words.transform(texts) @ search.best_estimator_.coef_[0]).tolist()
    return scores
